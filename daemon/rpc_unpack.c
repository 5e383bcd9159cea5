#include "daemon/rpc_unpack.h"

#include <stdio.h>
#include <string.h>

#include "daemon/tokenizer.h"

/* protobuf-c's own scratch takes 40 bytes for a field of two; a million unpacked ids stay below
 * this, megabytes of empty map entries (40 times their size) do not. */
enum { UNPACK_BASE = 1 << 20, UNPACK_FACTOR = 24, PATH_ROOM = 160 };

struct memory {
    struct arena *arena;
    bool refused;
};

static void *memory_allocate(void *context, size_t size)
{
    struct memory *memory = context;
    void *bytes = arena_allocate(memory->arena, 1, size);
    if (!bytes)
        memory->refused = true;
    return bytes;
}

static void memory_free(void *context, void *bytes)
{
    (void)context;
    (void)bytes;
}

size_t rpc_unpack_limit(size_t length)
{
    return UNPACK_BASE + length * UNPACK_FACTOR;
}

static enum status check_message(const ProtobufCMessage *message, const char *path,
                                 struct error *error);

static enum status check_value(const ProtobufCFieldDescriptor *field, const void *value,
                               const char *path, struct error *error)
{
    if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
        const ProtobufCMessage *inner = *(const ProtobufCMessage *const *)value;
        return inner ? check_message(inner, path, error) : STATUS_OK;
    }
    const ProtobufCBinaryData *text = value;
    size_t bad = text->len ? utf8_invalid((const char *)text->data, text->len) : 0;
    if (bad == text->len)
        return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "%s: not UTF-8 at byte %zu", path, bad);
}

static enum status check_repeated(const ProtobufCFieldDescriptor *field, const char *base,
                                  const char *path, struct error *error)
{
    size_t count = *(const size_t *)(const void *)(base + field->quantifier_offset);
    const char *values = *(const char *const *)(const void *)(base + field->offset);
    size_t size = field->type == PROTOBUF_C_TYPE_MESSAGE ? sizeof(ProtobufCMessage *)
                                                         : sizeof(ProtobufCBinaryData);
    for (size_t i = 0; i < count; i++) {
        char element[PATH_ROOM];
        if (snprintf(element, sizeof element, "%s[%zu]", path, i) >= PATH_ROOM)
            return error_set(error, STATUS_INVALID_ARGUMENT, "%s: too deep", path);
        enum status status = check_value(field, values + i * size, element, error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

static enum status check_field(const ProtobufCFieldDescriptor *field, const char *base,
                               const char *path, struct error *error)
{
    /* `string` is generated as bytes: see proto/CMakeLists.txt */
    if (field->type != PROTOBUF_C_TYPE_MESSAGE && field->type != PROTOBUF_C_TYPE_BYTES)
        return STATUS_OK;
    if (field->label == PROTOBUF_C_LABEL_REPEATED)
        return check_repeated(field, base, path, error);
    if ((field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) &&
        *(const uint32_t *)(const void *)(base + field->quantifier_offset) != field->id)
        return STATUS_OK;
    return check_value(field, base + field->offset, path, error);
}

/* Recursion ends because no message of ours contains itself. */
static enum status check_message(const ProtobufCMessage *message, const char *path,
                                 struct error *error)
{
    const ProtobufCMessageDescriptor *type = message->descriptor;
    for (unsigned i = 0; i < type->n_fields; i++) {
        char inner[PATH_ROOM];
        snprintf(inner, sizeof inner, "%s%s%s", path, *path ? "." : "", type->fields[i].name);
        enum status status = check_field(&type->fields[i], (const char *)message, inner, error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

enum status rpc_unpack(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t length,
                       struct arena **arena, ProtobufCMessage **message, struct error *error)
{
    struct memory memory = {.arena = arena_create(rpc_unpack_limit(length))};
    if (!memory.arena)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "request: out of memory");
    ProtobufCAllocator allocator = {memory_allocate, memory_free, &memory};
    ProtobufCMessage *unpacked = protobuf_c_message_unpack(type, &allocator, length, bytes);
    enum status status;
    if (unpacked)
        status = check_message(unpacked, "", error);
    else if (memory.refused)
        status =
            error_set(error, STATUS_INVALID_ARGUMENT, "request: %zu bytes unpack to more than %zu",
                      length, rpc_unpack_limit(length));
    else
        status = error_set(error, STATUS_INVALID_ARGUMENT, "request: the bytes are not a %s",
                           type->name);
    if (status != STATUS_OK) {
        arena_destroy(memory.arena);
        return status;
    }
    *arena = memory.arena;
    *message = unpacked;
    return STATUS_OK;
}
