/* Bearer tokens, the same for every method: also health, reflection and paths nobody registered. */
#include <string.h>
#include <strings.h>

#include "daemon/rpc_private.h"

/* Takes time by the length of what the client sent, never by how much of it is right. */
static bool equal(const char *secret, const uint8_t *given, size_t length)
{
    size_t size = strlen(secret);
    unsigned difference = size != length;
    for (size_t i = 0; i < length; i++)
        difference |= (unsigned)given[i] ^ (unsigned char)secret[size ? i % size : 0];
    return difference == 0;
}

static bool known(const struct rpc_server *server, const uint8_t *token, size_t length)
{
    bool found = false;
    for (int i = 0; i < server->token_count; i++)
        found |= equal(server->tokens[i], token, length);
    return found && length;
}

bool rpc_authorized(const struct rpc_server *server, const grpc_metadata_array *metadata)
{
    static const char scheme[] = "bearer ";
    const size_t skip = sizeof scheme - 1;
    if (!server->token_count)
        return true;
    int seen = 0;
    bool right = false;
    for (size_t i = 0; i < metadata->count; i++) {
        if (grpc_slice_str_cmp(metadata->metadata[i].key, "authorization") != 0)
            continue;
        const grpc_slice value = metadata->metadata[i].value;
        const uint8_t *bytes = GRPC_SLICE_START_PTR(value);
        size_t length = GRPC_SLICE_LENGTH(value);
        seen++;
        right = length > skip && strncasecmp((const char *)bytes, scheme, skip) == 0 &&
                known(server, bytes + skip, length - skip);
    }
    return seen == 1 && right; /* two headers: whoever stands before us may have read the other */
}
