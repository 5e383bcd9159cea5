#include "daemon/base/option.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "daemon/base/arena.h"
#include "daemon/base/file.h"
#include "daemon/base/log.h"

enum { CONFIG_BYTES_MAX = 1 << 20, STORE_BYTES_MAX = 16 << 20, ENTRIES_MAX = 256 };
enum { FIRST_VALUE = 256 }; /* getopt results of table entries: past 1, ?, : */

struct option_store {
    struct arena *arena;
};

/* ---- one value ---- */

static bool text_is_one_of(const char *text, const char *choices)
{
    size_t length = strlen(text);
    for (const char *at = choices; at != NULL && *at != '\0';) {
        const char *bar = strchr(at, '|');
        size_t span = bar ? (size_t)(bar - at) : strlen(at);
        if (span == length && memcmp(at, text, length) == 0)
            return true;
        at = bar ? bar + 1 : NULL;
    }
    return false;
}

static bool parse_size(const char *text, uint64_t *value)
{
    if (!isdigit((unsigned char)text[0]))
        return false;
    char *end;
    errno = 0;
    uint64_t number = strtoull(text, &end, 10);
    if (errno != 0)
        return false;
    static const char units[] = "KMGT";
    const char *unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    if (unit != NULL) {
        unsigned shift = 10u * (unsigned)(unit - units + 1);
        if (number > UINT64_MAX >> shift)
            return false;
        number <<= shift;
        end++;
    }
    *value = number;
    return *end == '\0';
}

static bool parse_flag(const char *text, bool *value)
{
    if (text_is_one_of(text, "true|yes|on|1"))
        *value = true;
    else if (text_is_one_of(text, "false|no|off|0"))
        *value = false;
    else
        return false;
    return true;
}

static bool in_range(const struct option_entry *entry, double value)
{
    return (entry->least == 0 && entry->most == 0) ||
           (value >= entry->least && value <= entry->most);
}

static bool is_flag(const struct option_entry *entry)
{
    return entry->type == OPTION_FLAG || entry->type == OPTION_ACTION;
}

static enum status refuse(const struct option_entry *entry, const char *source, const char *text,
                          struct error *error)
{
    if (entry->type == OPTION_CHOICE)
        return error_set(error, STATUS_CONFIG, "%s: \"%s\" is not one of %s", source, text,
                         entry->choices);
    if (entry->least != 0 || entry->most != 0)
        return error_set(error, STATUS_CONFIG, "%s: \"%s\" is not a number from %.17g to %.17g",
                         source, text, entry->least, entry->most);
    return error_set(error, STATUS_CONFIG, "%s: \"%s\" is not a valid %s", source, text,
                     is_flag(entry) ? "true or false" : "number");
}

static enum status keep(struct option_store *store, const char *source, const char *text,
                        const char **copy, struct error *error)
{
    *copy = arena_string(store->arena, text, strlen(text));
    return *copy != NULL ? STATUS_OK
                         : error_set(error, STATUS_NO_MEMORY, "%s: out of memory", source);
}

static enum status list_add(struct option_store *store, const char *source, const char *text,
                            struct option_list *list, struct error *error)
{
    if (text[0] == '\0')
        return STATUS_OK;
    if (list->count == OPTION_LIST_MAX)
        return error_set(error, STATUS_CONFIG, "%s: given more than %d times", source,
                         OPTION_LIST_MAX);
    return keep(store, source, text, &list->text[list->count++], error);
}

static enum status set_value(struct option_store *store, const struct option_entry *entry,
                             const char *source, const char *text, void *settings,
                             struct error *error)
{
    char *field = (char *)settings + entry->offset;
    char *end = NULL;
    errno = 0;
    switch (entry->type) {
    case OPTION_CHOICE:
        if (!text_is_one_of(text, entry->choices))
            return refuse(entry, source, text, error);
        /* fall through */
    case OPTION_STRING:
        return keep(store, source, text, (const char **)(void *)field, error);
    case OPTION_LIST:
        ((struct option_list *)(void *)field)->count = 0;
        return list_add(store, source, text, (struct option_list *)(void *)field, error);
    case OPTION_INT: {
        long value = strtol(text, &end, 10);
        if (errno || end == text || *end || value < INT32_MIN || value > INT32_MAX ||
            !in_range(entry, (double)value))
            return refuse(entry, source, text, error);
        *(int *)(void *)field = (int)value;
        return STATUS_OK;
    }
    case OPTION_SIZE: {
        uint64_t value;
        if (!parse_size(text, &value) || !in_range(entry, (double)value))
            return refuse(entry, source, text, error);
        *(uint64_t *)(void *)field = value;
        return STATUS_OK;
    }
    case OPTION_DOUBLE: {
        double value = strtod(text, &end);
        if (errno || end == text || *end || !isfinite(value) || !in_range(entry, value))
            return refuse(entry, source, text, error);
        *(double *)(void *)field = value;
        return STATUS_OK;
    }
    case OPTION_FLAG:
    case OPTION_ACTION:
        if (!parse_flag(text, (bool *)(void *)field))
            return refuse(entry, source, text, error);
        return STATUS_OK;
    }
    return STATUS_INTERNAL;
}

/* ---- sources ---- */

static const struct option_entry *entry_find(const struct option_table *table, const char *name)
{
    for (size_t i = 0; i < table->count; i++) {
        const struct option_entry *entry = &table->entries[i];
        if (strcmp(entry->name, name) == 0 ||
            (entry->alias != NULL && strcmp(entry->alias, name) == 0))
            return entry;
    }
    return NULL;
}

static enum status load_defaults(const struct option_table *table, struct option_store *store,
                                 void *settings, struct error *error)
{
    for (size_t i = 0; i < table->count; i++) {
        enum status status = set_value(store, &table->entries[i], table->entries[i].name,
                                       table->entries[i].fallback, settings, error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

/* In Kubernetes a Service named like the program sets <PREFIX>_PORT to "tcp://10.0.0.1:50051": that
 * is said about the Service, not to us. */
static bool is_service_link(const struct option_entry *entry, const char *text)
{
    return entry->type == OPTION_INT && strstr(text, "://") != NULL;
}

static enum status load_environment(const struct option_table *table, struct option_store *store,
                                    void *settings, struct error *error)
{
    if (table->environment == NULL)
        return STATUS_OK;
    for (size_t i = 0; i < table->count; i++) {
        if (table->entries[i].type == OPTION_ACTION)
            continue;
        char name[96];
        snprintf(name, sizeof name, "%s_%s", table->environment, table->entries[i].name);
        for (char *at = name; *at; at++)
            *at = *at == '-' ? '_' : (char)toupper((unsigned char)*at);
        const char *text = getenv(name);
        if (text == NULL)
            continue;
        if (is_service_link(&table->entries[i], text)) {
            log_warning("environment variable %s: \"%s\" is the address of a Kubernetes Service; "
                        "it is ignored",
                        name, text);
            continue;
        }
        char source[128];
        snprintf(source, sizeof source, "environment variable %s", name);
        enum status status = set_value(store, &table->entries[i], source, text, settings, error);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

/* A flat mapping of scalars; anything else is refused with its line. */
static enum status load_events(yaml_parser_t *parser, const char *path,
                               const struct option_table *table, struct option_store *store,
                               void *settings, struct error *error)
{
    const struct option_entry *entry = NULL;
    bool inside = false, seen[ENTRIES_MAX] = {false};
    for (bool done = false; !done;) {
        yaml_event_t event;
        if (!yaml_parser_parse(parser, &event))
            return error_set(error, STATUS_CONFIG, "%s: line %zu: %s", path,
                             parser->problem_mark.line + 1, parser->problem);
        enum status status = STATUS_OK;
        size_t line = event.start_mark.line + 1;
        if (event.type == YAML_MAPPING_START_EVENT && !inside) {
            inside = true;
        } else if (event.type == YAML_SCALAR_EVENT && inside) {
            const char *text = (const char *)event.data.scalar.value;
            char source[512];
            if (entry != NULL) {
                snprintf(source, sizeof source, "%s: line %zu: %s", path, line, entry->name);
                status = set_value(store, entry, source, text, settings, error);
                entry = NULL;
            } else if ((entry = entry_find(table, text)) == NULL) {
                status = error_set(error, STATUS_CONFIG, "%s: line %zu: unknown option \"%s\"",
                                   path, line, text);
            } else if (seen[entry - table->entries]) {
                status = error_set(error, STATUS_CONFIG, "%s: line %zu: %s is given twice", path,
                                   line, text);
            } else {
                seen[entry - table->entries] = true;
            }
        } else if (event.type == YAML_SEQUENCE_START_EVENT ||
                   event.type == YAML_MAPPING_START_EVENT || event.type == YAML_ALIAS_EVENT ||
                   event.type == YAML_SCALAR_EVENT) {
            status =
                error_set(error, STATUS_CONFIG,
                          "%s: line %zu: expected a flat mapping \"option: value\"", path, line);
        }
        done = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

static enum status load_file(const struct option_table *table, const char *path,
                             struct option_store *store, void *settings, struct error *error)
{
    char *text;
    size_t length;
    struct error cause = {0};
    if (file_read(path, CONFIG_BYTES_MAX, &text, &length, &cause) != STATUS_OK)
        return error_set(error, STATUS_CONFIG, "%s", cause.text);
    yaml_parser_t parser;
    enum status status;
    if (yaml_parser_initialize(&parser)) {
        yaml_parser_set_input_string(&parser, (const unsigned char *)text, length);
        status = load_events(&parser, path, table, store, settings, error);
        yaml_parser_delete(&parser);
    } else {
        status = error_set(error, STATUS_NO_MEMORY, "%s: out of memory", path);
    }
    free(text);
    return status;
}

/* ---- command line ---- */

/* One pass over it. */
struct pass {
    const struct option_table *table;
    const struct option_entry *only; /* take this one alone and skip the others; NULL: all */
    struct option_store *store;
    void *settings;
    bool given[ENTRIES_MAX];
    const char *bare;                 /* the bare argument that was taken */
    const struct option_entry *alone; /* a flag without a value, right before */
};

static enum status take(struct pass *pass, const struct option_entry *entry, const char *text,
                        struct error *error)
{
    char source[128], *field = (char *)pass->settings + entry->offset;
    bool *given = &pass->given[entry - pass->table->entries], again = *given;
    if (pass->only != NULL && entry != pass->only)
        return STATUS_OK;
    snprintf(source, sizeof source, "--%s", entry->name);
    *given = true;
    if (again && entry->type == OPTION_LIST)
        return list_add(pass->store, source, text, (struct option_list *)(void *)field, error);
    return set_value(pass->store, entry, source, text, pass->settings, error);
}

static enum status take_bare(struct pass *pass, const char *text, struct error *error)
{
    const char *name = pass->table->positional;
    if (pass->alone != NULL && text_is_one_of(text, "true|false"))
        return error_set(error, STATUS_CONFIG, "--%s %s: write --%s=%s", pass->alone->name, text,
                         pass->alone->name, text);
    if (name == NULL)
        return error_set(error, STATUS_CONFIG, "unexpected argument \"%s\"", text);
    if (pass->bare != NULL)
        return error_set(error, STATUS_CONFIG, "unexpected argument \"%s\": %s is \"%s\" already",
                         text, name, pass->bare);
    pass->bare = text;
    pass->alone = NULL;
    return take(pass, entry_find(pass->table, name), text, error);
}

static enum status take_option(struct pass *pass, const struct option_entry *entry,
                               const char *text, struct error *error)
{
    pass->alone = text == NULL ? entry : NULL;
    return take(pass, entry, text != NULL ? text : "true", error);
}

/* What getopt_long is told: both names of every entry. */
static void list_names(const struct option_table *table, struct option *options)
{
    for (size_t i = 0; i < table->count; i++) {
        const struct option_entry *entry = &table->entries[i];
        const char *names[] = {entry->name, entry->alias};
        for (int k = 0; k < 2 && names[k] != NULL; k++)
            *options++ = (struct option){
                .name = names[k],
                .has_arg = is_flag(entry) ? optional_argument : required_argument,
                .val = (int)i + FIRST_VALUE,
            };
    }
}

static enum status load_arguments(struct pass *pass, int argc, char **argv, struct error *error)
{
    struct option options[2 * ENTRIES_MAX + 1] = {{0}};
    enum status status = STATUS_OK;
    list_names(pass->table, options);
    optind = 0; /* a fresh scan */
    opterr = 0;
    for (int value;
         status == STATUS_OK && (value = getopt_long(argc, argv, "-:", options, NULL)) != -1;) {
        if (value == 1)
            status = take_bare(pass, optarg, error);
        else if (value == ':')
            status = error_set(error, STATUS_CONFIG, "%s needs a value", argv[optind - 1]);
        else if (value == '?')
            status =
                error_set(error, STATUS_CONFIG, "unknown or ambiguous option %s", argv[optind - 1]);
        else
            status = take_option(pass, &pass->table->entries[value - FIRST_VALUE], optarg, error);
    }
    pass->alone = NULL; /* behind "--" nothing is an option's value */
    for (int i = optind; status == STATUS_OK && i < argc; i++)
        status = take_bare(pass, argv[i], error);
    return status;
}

enum status option_load(const struct option_table *table, int argc, char **argv, void *settings,
                        struct option_store **out, struct error *error)
{
    if (table->count > ENTRIES_MAX)
        return error_set(error, STATUS_INTERNAL, "option table of %s is too long", table->program);
    struct option_store *store = calloc(1, sizeof *store);
    if (store == NULL || (store->arena = arena_create(STORE_BYTES_MAX)) == NULL) {
        free(store);
        return error_set(error, STATUS_NO_MEMORY, "options: out of memory");
    }
    struct pass pass = {.table = table, .store = store, .settings = settings};
    enum status status = load_defaults(table, store, settings, error);
    const struct option_entry *config = table->file ? entry_find(table, table->file) : NULL;
    if (status == STATUS_OK && config != NULL) {
        status = load_environment(table, store, settings, error);
        struct pass first = pass;
        first.only = config;
        if (status == STATUS_OK)
            status = load_arguments(&first, argc, argv, error);
        const char *path = *(const char **)(void *)((char *)settings + config->offset);
        if (status == STATUS_OK && path[0] != '\0')
            status = load_file(table, path, store, settings, error);
    }
    if (status == STATUS_OK)
        status = load_environment(table, store, settings, error);
    if (status == STATUS_OK)
        status = load_arguments(&pass, argc, argv, error);
    if (status != STATUS_OK) {
        option_free(store);
        return status;
    }
    *out = store;
    return STATUS_OK;
}

void option_free(struct option_store *store)
{
    if (store == NULL)
        return;
    arena_destroy(store->arena);
    free(store);
}

/* ---- documents ---- */

void option_help(const struct option_table *table, FILE *out)
{
    fprintf(out, "%s\n\nOptions", table->synopsis);
    if (table->file != NULL)
        fprintf(out, ", also lines \"name: value\" of the file that --%s names", table->file);
    if (table->environment != NULL)
        fprintf(out, ", also environment variables %s_NAME", table->environment);
    fprintf(out, ":\n");
    for (size_t i = 0; i < table->count; i++) {
        const struct option_entry *entry = &table->entries[i];
        fprintf(out, "  --%s", entry->name);
        if (entry->alias != NULL)
            fprintf(out, ", --%s", entry->alias);
        if (entry->type == OPTION_CHOICE)
            fprintf(out, " {%s}", entry->choices);
        else if (entry->value != NULL)
            fprintf(out, " %s", entry->value);
        fprintf(out, "\n        %s", entry->help);
        if (entry->fallback[0] != '\0')
            fprintf(out, " [%s]", entry->fallback);
        fputc('\n', out);
    }
}

void option_document(const struct option_table *table, FILE *out)
{
    fprintf(out, "| option | default | what it does |\n|---|---|---|\n");
    for (size_t i = 0; i < table->count; i++) {
        const struct option_entry *entry = &table->entries[i];
        fprintf(out, "| `--%s` | %s%s%s | %s |\n", entry->name, entry->fallback[0] ? "`" : "",
                entry->fallback, entry->fallback[0] ? "`" : "", entry->help);
    }
}
