/* info, load, health, drain. Their answers are printed by walking the message, so that a new field
 * shows up by itself. */
#include <string.h>

#include "daemon/ctl/ctl.h"
#include "daemon/ctl/json_line.h"
#include "grpc/health/v1/health.pb-c.h"

static json_t *json_message(const ProtobufCMessage *message);

static json_t *json_value(const ProtobufCFieldDescriptor *field, const void *at)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_MESSAGE: {
        const ProtobufCMessage *inner = *(const ProtobufCMessage *const *)at;
        return inner ? json_message(inner) : NULL;
    }
    case PROTOBUF_C_TYPE_BYTES:
        return ctl_json_text(*(const ProtobufCBinaryData *)at);
    case PROTOBUF_C_TYPE_BOOL:
        return json_boolean(*(const protobuf_c_boolean *)at);
    case PROTOBUF_C_TYPE_DOUBLE:
        return json_real(*(const double *)at);
    case PROTOBUF_C_TYPE_FLOAT:
        return json_real((double)*(const float *)at);
    case PROTOBUF_C_TYPE_UINT64:
        return json_integer((json_int_t) * (const uint64_t *)at);
    case PROTOBUF_C_TYPE_UINT32:
        return json_integer(*(const uint32_t *)at);
    default:
        return json_integer(*(const int32_t *)at);
    }
}

static size_t value_size(const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_DOUBLE:
    case PROTOBUF_C_TYPE_UINT64:
        return 8;
    default:
        return 4;
    }
}

static json_t *json_field(const ProtobufCFieldDescriptor *field, const char *base)
{
    const void *at = base + field->offset, *quantifier = base + field->quantifier_offset;
    if ((field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) && *(const uint32_t *)quantifier != field->id)
        return NULL;
    if (field->label != PROTOBUF_C_LABEL_REPEATED)
        return json_value(field, at);
    json_t *list = json_array();
    const char *values = *(const char *const *)at;
    for (size_t i = 0; i < *(const size_t *)quantifier; i++)
        json_array_append_new(list, json_value(field, values + i * value_size(field)));
    return list;
}

static json_t *json_message(const ProtobufCMessage *message)
{
    json_t *object = json_object();
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        json_t *value = json_field(&message->descriptor->fields[i], (const char *)message);
        if (value)
            json_object_set_new(object, message->descriptor->fields[i].name, value);
    }
    return object;
}

static void print_lines(const json_t *object, int indent)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        printf("%*s%-*s ", indent, "", 26 - indent, key);
        if (json_is_object(value)) {
            putchar('\n');
            print_lines(value, indent + 2);
        } else if (json_is_string(value)) {
            puts(json_string_value(value));
        } else {
            json_dumpf(value, stdout, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
            putchar('\n');
        }
    }
}

static void show(void *context, const ProtobufCMessage *message)
{
    const struct ctl_settings *settings = context;
    json_t *object = json_message(message);
    if (settings->json) {
        ctl_print_json(object);
        return;
    }
    print_lines(object, 0);
    json_decref(object);
}

static int ask(const struct ctl_settings *settings, struct ctl_client *client, const char *path,
               const ProtobufCMessage *request, const ProtobufCMessageDescriptor *response)
{
    const struct ctl_call call = {.path = path,
                                  .request = request,
                                  .response = response,
                                  .visit = show,
                                  .context = (void *)(uintptr_t)settings};
    return ctl_run(client, &call);
}

int ctl_info(const struct ctl_settings *settings, struct ctl_client *client)
{
    Jet__V1__GetModelInfoRequest model = JET__V1__GET_MODEL_INFO_REQUEST__INIT;
    Jet__V1__GetServerInfoRequest server = JET__V1__GET_SERVER_INFO_REQUEST__INIT;
    int code = ask(settings, client, "/jet.v1.Control/GetModelInfo", &model.base,
                   &jet__v1__get_model_info_response__descriptor);
    if (code != CTL_OK)
        return code;
    return ask(settings, client, "/jet.v1.Control/GetServerInfo", &server.base,
               &jet__v1__get_server_info_response__descriptor);
}

int ctl_load(const struct ctl_settings *settings, struct ctl_client *client)
{
    Jet__V1__GetLoadRequest request = JET__V1__GET_LOAD_REQUEST__INIT;
    return ask(settings, client, "/jet.v1.Control/GetLoad", &request.base,
               &jet__v1__get_load_response__descriptor);
}

int ctl_drain(const struct ctl_settings *settings, struct ctl_client *client)
{
    Jet__V1__DrainRequest request = JET__V1__DRAIN_REQUEST__INIT;
    float timeout = 0;
    bool set;
    if (!ctl_float("drain-timeout", settings->drain_timeout, &set, &timeout))
        return CTL_USAGE;
    if (set) {
        request.timeout_presence_case = JET__V1__DRAIN_REQUEST__TIMEOUT_PRESENCE_TIMEOUT;
        request.timeout = (double)timeout;
    }
    return ask(settings, client, "/jet.v1.Control/Drain", &request.base,
               &jet__v1__drain_response__descriptor);
}

struct health {
    const struct ctl_settings *settings;
    bool serving;
};

static void show_health(void *context, const ProtobufCMessage *message)
{
    struct health *health = context;
    const Grpc__Health__V1__HealthCheckResponse *response = (const void *)message;
    const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(
        &grpc__health__v1__health_check_response__serving_status__descriptor,
        (int)response->status);
    const char *name = value ? value->name : "UNKNOWN";
    health->serving =
        response->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    if (health->settings->json)
        ctl_print_json(json_pack("{s:s}", "status", name));
    else
        puts(name);
}

int ctl_health(const struct ctl_settings *settings, struct ctl_client *client)
{
    struct health health = {.settings = settings};
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = ctl_bytes(settings->service, strlen(settings->service));
    const struct ctl_call call = {
        .path = "/grpc.health.v1.Health/Check",
        .request = &request.base,
        .response = &grpc__health__v1__health_check_response__descriptor,
        .visit = show_health,
        .context = &health,
    };
    int code = ctl_run(client, &call);
    return code == CTL_OK && !health.serving ? CTL_NOT_SERVING : code;
}
