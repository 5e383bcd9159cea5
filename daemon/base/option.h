/* Options from one table: name, default as text, help, range. The command line, environment
 * variables, a configuration file, --help and the generated documentation all come from it.
 * Precedence: command line, then environment, then file, then default. */
#ifndef JETD_BASE_OPTION_H
#define JETD_BASE_OPTION_H

#include <stddef.h>
#include <stdio.h>

#include "daemon/base/status.h"

enum option_type {
    OPTION_LIST,   /* struct option_list; one text each time that it is given on the command line */
    OPTION_STRING, /* const char * ("" when the default is "") */
    OPTION_INT,    /* int */
    OPTION_SIZE,   /* uint64_t; K, M, G, T suffixes are powers of 1024 */
    OPTION_DOUBLE, /* double */
    OPTION_FLAG,   /* bool; "--x", "--x=true|false" */
    OPTION_ACTION, /* as OPTION_FLAG, but no environment variable sets it: JETD_VERSION means
                      another */
    OPTION_CHOICE, /* const char *, one of `choices` */
};

enum { OPTION_LIST_MAX = 16 };

struct option_list {
    const char *text[OPTION_LIST_MAX];
    int count;
};

struct option_entry {
    const char *name;  /* "max-num-seqs": --max-num-seqs, JETD_MAX_NUM_SEQS, max-num-seqs: */
    const char *alias; /* a second long name, or NULL */
    enum option_type type;
    const char *fallback; /* the default as text */
    const char *value;    /* what --help calls the value; NULL for flags */
    const char *help;
    double least, most;  /* range of numbers; both 0: none */
    const char *choices; /* "a|b|c" */
    size_t offset;       /* into the settings struct */
};

struct option_table {
    const char *program;     /* "jetd" */
    const char *environment; /* "JETD": prefix of variables; NULL: none are read */
    const char *synopsis;    /* first lines of --help */
    const struct option_entry *entries;
    size_t count;
    const char *positional; /* option that a single bare argument sets, also one after "--"; NULL:
                               bare arguments fail */
    const char *file;       /* option that names a YAML file of options; NULL: none */
};

struct option_store; /* owns the strings that settings point into */

/* Fills `settings`. A variable that should be a number and is a URL is passed over with a warning:
 * Kubernetes sets JETD_PORT so for a Service named jetd. Errors (STATUS_CONFIG) name the source
 * (flag, variable, file and line) and the value. The file is YAML, a flat mapping of option names.
 */
enum status option_load(const struct option_table *table, int argc, char **argv, void *settings,
                        struct option_store **store, struct error *error);
void option_free(struct option_store *store);

/* --help: every option with its default. */
void option_help(const struct option_table *table, FILE *out);
/* The same as a Markdown table. */
void option_document(const struct option_table *table, FILE *out);

#endif
