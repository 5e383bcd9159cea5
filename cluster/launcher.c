/* Who we are, as the launcher says in the environment: asked before MPI starts. */
#include <limits.h>
#include <stdlib.h>

#include "cluster/cluster.h"

/* The first variable that holds a whole number, `otherwise` without one. */
static int number_from(const char *const *names, int otherwise)
{
    for (; *names != NULL; names++) {
        const char *text = getenv(*names);
        if (text == NULL || *text == '\0')
            continue;
        char *end;
        long value = strtol(text, &end, 10);
        if (*end == '\0' && value >= 0 && value <= INT_MAX)
            return (int)value;
    }
    return otherwise;
}

void launcher_world(int *size, int *rank, int *local_rank)
{
    /* Slurm's variables count only inside a step that srun started: a batch script has
     * SLURM_NTASKS as well, and is one process. */
    bool step = getenv("SLURM_STEP_ID") != NULL && getenv("PMIX_RANK") != NULL;
    const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", step ? "SLURM_STEP_NUM_TASKS" : NULL,
                                 "SLURM_NTASKS", NULL};
    const char *const ranks[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", step ? "SLURM_PROCID" : NULL,
                                 NULL};
    const char *const locals[] = {"OMPI_COMM_WORLD_LOCAL_RANK", step ? "SLURM_LOCALID" : NULL,
                                  NULL};
    *size = number_from(sizes, 1);
    *rank = number_from(ranks, 0);
    *local_rank = number_from(locals, 0);
    if (*size < 1 || *rank >= *size) {
        *size = 1;
        *rank = 0;
        *local_rank = 0;
    }
}
