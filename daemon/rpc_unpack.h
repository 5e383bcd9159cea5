/* Bytes from a client to a protobuf-c message: memory is bounded by the bytes received, and every
 * string is checked to be UTF-8. */
#ifndef JETD_DAEMON_RPC_UNPACK_H
#define JETD_DAEMON_RPC_UNPACK_H

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

#include "daemon/base/arena.h"
#include "daemon/base/status.h"

/* The most memory that a message of `length` bytes may unpack to. */
size_t rpc_unpack_limit(size_t length);

/* The message lives in `*arena`, which the caller destroys. INVALID_ARGUMENT: not a message of this
 * type, larger unpacked than allowed, or a string that is not UTF-8 (named with its path). */
enum status rpc_unpack(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t length,
                       struct arena **arena, ProtobufCMessage **message, struct error *error);

#endif
