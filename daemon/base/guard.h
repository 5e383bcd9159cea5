/* Proof that a step allocates nothing: between guard_enter and guard_leave an allocation by this
 * thread, from our own code, aborts with a message. Only in builds with JETD_GUARD (preset dev),
 * where the linker wraps the allocation functions; otherwise both calls do nothing. */
#ifndef JETD_BASE_GUARD_H
#define JETD_BASE_GUARD_H

void guard_enter(const char *what); /* `what` names the section; sections do not nest */
void guard_leave(void);

#endif
