#include "daemon/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *status_name(enum status status)
{
    switch (status) {
    case STATUS_OK:
        return "ok";
    case STATUS_CANCELLED:
        return "cancelled";
    case STATUS_DEADLINE_EXCEEDED:
        return "deadline exceeded";
    case STATUS_INVALID_ARGUMENT:
        return "invalid argument";
    case STATUS_NOT_FOUND:
        return "not found";
    case STATUS_FAILED_PRECONDITION:
        return "failed precondition";
    case STATUS_RESOURCE_EXHAUSTED:
        return "resource exhausted";
    case STATUS_UNAUTHENTICATED:
        return "unauthenticated";
    case STATUS_UNIMPLEMENTED:
        return "unimplemented";
    case STATUS_CONFIG:
        return "bad configuration";
    case STATUS_CORRUPT:
        return "corrupt file";
    case STATUS_IO:
        return "input/output error";
    case STATUS_NO_MEMORY:
        return "out of memory";
    case STATUS_DEVICE:
        return "device failure";
    case STATUS_INTERNAL:
        return "internal error";
    case STATUS_PEER_LOST:
        return "peer lost";
    case STATUS_PEER_MISMATCH:
        return "peer mismatch";
    case STATUS_ABORTED:
        return "aborted";
    }
    return "unknown status";
}

int status_exit_code(enum status status)
{
    if (status == STATUS_OK)
        return 0;
    if (status == STATUS_DEVICE)
        return 3;
    return status == STATUS_CONFIG || status == STATUS_CORRUPT ? 2 : 1;
}

enum status error_set(struct error *error, enum status status, const char *format, ...)
{
    if (error == NULL || error->status != STATUS_OK)
        return status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    error->status = status;
    return status;
}

enum status error_prefix(struct error *error, const char *format, ...)
{
    if (error == NULL)
        return STATUS_INTERNAL;
    char cause[sizeof error->text];
    memcpy(cause, error->text, sizeof cause);
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    if (used < 0 || (size_t)used + 2 >= sizeof error->text)
        return error->status;
    char *at = error->text + used;
    size_t room = sizeof error->text - (size_t)used;
    *at++ = ':';
    *at++ = ' ';
    cause[room - 3] = '\0';
    memcpy(at, cause, strlen(cause) + 1);
    return error->status;
}

void error_clear(struct error *error)
{
    error->status = STATUS_OK;
    error->text[0] = '\0';
}
