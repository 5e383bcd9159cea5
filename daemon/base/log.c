#include "daemon/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static enum log_level threshold = LOG_INFO;
static int own_rank = -1;
static bool as_json;
static atomic_uint error_lines;

void log_configure(enum log_level level, int rank, bool json)
{
    threshold = level;
    own_rank = rank;
    as_json = json;
}

unsigned log_errors(void)
{
    return atomic_load(&error_lines);
}

/* Copies `text`, escaping control bytes (and what JSON needs escaped); returns bytes written. */
static size_t escape(char *out, size_t room, const char *text)
{
    size_t used = 0;
    for (const unsigned char *at = (const unsigned char *)text; *at && used + 7 < room; at++) {
        if (*at < 0x20 || *at == 0x7f)
            used += (size_t)snprintf(out + used, room - used, "\\u%04x", *at);
        else if (as_json && (*at == '"' || *at == '\\'))
            used += (size_t)snprintf(out + used, room - used, "\\%c", *at);
        else
            out[used++] = (char)*at;
    }
    out[used] = '\0';
    return used;
}

void log_line(enum log_level level, const char *format, ...)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    if (level == LOG_ERROR)
        atomic_fetch_add(&error_lines, 1);
    if (level > threshold)
        return;

    char text[1024], escaped[1536], line[1800];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    escape(escaped, sizeof escaped, text);

    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    char stamp[40], rank[24] = "";
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(stamp + n, sizeof stamp - n, ".%03ldZ", now.tv_nsec / 1000000);
    if (own_rank >= 0)
        snprintf(rank, sizeof rank, as_json ? ",\"rank\":%d" : " rank %d", own_rank);

    int length;
    if (as_json)
        length =
            snprintf(line, sizeof line, "{\"time\":\"%s\",\"level\":\"%s\"%s,\"text\":\"%s\"}\n",
                     stamp, names[level], rank, escaped);
    else
        length = snprintf(line, sizeof line, "%s %s%s: %s\n", stamp, names[level], rank, escaped);
    /* One write, so that lines of several threads and ranks do not mix. */
    if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0)
        return; /* nowhere left to say it */
}
