/* Events of the engine as messages of jet.v1. */
#ifndef JETD_DAEMON_RPC_ANSWER_H
#define JETD_DAEMON_RPC_ANSWER_H

#include "daemon/rpc_private.h"

/* Sends one event of a Generate call. False: out of memory, nothing was sent. */
bool rpc_send_event(struct rpc_call *call, const struct event *event);

#endif
