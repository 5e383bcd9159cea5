/* Log lines: one line an event on standard error, with time, level and rank.
 * Control bytes in arguments are escaped; prompts and outputs are never logged. */
#ifndef JETD_BASE_LOG_H
#define JETD_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* Call before the first thread starts. `rank` < 0: no rank in the lines. `json`: one object a
 * line. */
void log_configure(enum log_level level, int rank, bool json);

/* Any thread. */
__attribute__((format(printf, 2, 3))) void log_line(enum log_level level, const char *format, ...);

/* How many LOG_ERROR lines were written: tests assert that it stayed where it was. */
unsigned log_errors(void);

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)

#endif
