/* SIGTERM, SIGINT and SIGUSR1, which are taken one by one instead of by a handler. */
#ifndef JETD_DAEMON_SIGNALS_H
#define JETD_DAEMON_SIGNALS_H

/* Before any thread is made, so that every thread inherits it. */
void signals_block(void);
/* Until one is served nothing needs to be finished: ends the process if SIGTERM or SIGINT came. */
void signals_obey(void);
/* The next one, 0: none within `seconds` (below 1). */
int signals_next(double seconds);

#endif
