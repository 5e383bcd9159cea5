/* jetd: options, signals, and which of the two roles this rank has. */
#include <stdio.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/coordinator.h"
#include "daemon/executor.h"
#include "daemon/local.h"
#include "daemon/rank.h"
#include "daemon/settings.h"
#include "daemon/signals.h"

enum { EXIT_OK = 0, EXIT_USAGE = 2 };

static enum log_level level_of(const char *name)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    for (int i = 0; i < 4; i++)
        if (strcmp(names[i], name) == 0)
            return (enum log_level)i;
    return LOG_INFO;
}

static int run(const struct settings *settings)
{
    struct rank rank;
    struct error error = {0};
    enum status status;
    if (strcmp(settings->fabric, "threads") == 0) {
        status = local_run(settings, &error);
    } else if ((status = rank_open(settings, NULL, &rank, &error)) == STATUS_OK) {
        status = rank.fabric->rank == 0
                     ? coordinator_run(settings, &rank, &error)
                     : executor_serve(rank.stage, rank.fabric, &rank.shape, &error);
        rank_close(&rank);
    }
    if (status != STATUS_OK)
        log_error("%s: %s", status_name(status), error.text);
    return status_exit_code(status);
}

int main(int argc, char **argv)
{
    struct settings settings;
    struct option_store *store;
    struct error error = {0};
    if (option_load(&settings_table, argc, argv, &settings, &store, &error) != STATUS_OK) {
        fprintf(stderr, "jetd: %s\nTry 'jetd --help'.\n", error.text);
        return EXIT_USAGE;
    }
    int size, own, local, result = EXIT_OK;
    launcher_world(&size, &own, &local);
    log_configure(level_of(settings.log_level), size > 1 ? own : -1, settings.log_json);
    if (settings.help) {
        option_help(&settings_table, stdout);
    } else if (settings.document) {
        option_document(&settings_table, stdout);
    } else if (settings.version) {
        printf("jetd %s\n", JETD_VERSION);
    } else if (settings.plan) {
        if (rank_print_plan(&settings, &error) != STATUS_OK) {
            fprintf(stderr, "jetd: %s\n", error.text);
            result = EXIT_USAGE;
        }
    } else {
        /* Workers leave them pending on purpose: a drain is rank 0's to decide, and they end when
         * its stop step comes. */
        signals_block();
        result = run(&settings);
    }
    option_free(store);
    return result;
}
