/* Private to cluster/. Bounds calls that cannot be interrupted, such as MPI_Init: a thread that
 * ends this process, and with it the job, unless it hears in time that they returned. */
#ifndef JETD_CLUSTER_DEADLINE_H
#define JETD_CLUSTER_DEADLINE_H

struct deadline;

/* `what` the ranks did not do if it expires ("meet"); kept, not copied. NULL: no thread for it. */
struct deadline *deadline_begin(double seconds, const char *what);
void deadline_end(struct deadline *deadline); /* NULL is fine */

#endif
