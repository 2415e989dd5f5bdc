/* The reference that a worker is measured against: the least that any program must do to run a list of shell
 * commands, a few at a time. It keeps no records, no logs and no time limits.
 *
 *     spawn COUNT PARALLEL COMMAND      run `sh -c COMMAND` COUNT times, PARALLEL at once
 *
 * Exits 0 if every command did.
 */
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: %s COUNT PARALLEL COMMAND\n", argv[0]);
        return 2;
    }
    long count = atol(argv[1]), parallel = atol(argv[2]), started = 0, ended = 0, failed = 0;
    char *shell[] = {"sh", "-c", argv[3], NULL};

    while (ended < count) {
        while (started < count && started - ended < parallel) {
            pid_t pid;
            int error = posix_spawnp(&pid, "sh", NULL, NULL, shell, environ);
            if (error) {
                fprintf(stderr, "spawn: %s\n", strerror(error));
                return 1;
            }
            started++;
        }
        int status;
        if (waitpid(-1, &status, 0) < 0) {
            if (errno == EINTR)
                continue;
            perror("waitpid");
            return 1;
        }
        ended++;
        failed += status != 0;
    }
    return failed ? 1 : 0;
}
