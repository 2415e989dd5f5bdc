/* A job that says when it began, as exactly as the machine can.
 *
 *     stamp FILE [SECONDS]      append "NANOSECONDS PID" to FILE (wall clock), then sleep so long
 *
 * `date +%s%N` would add the start of one more program, which is as long as what is measured.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (argc < 2)
        return 2;

    char line[64];
    int length = snprintf(line, sizeof line, "%lld %ld\n",
                          now.tv_sec * 1000000000LL + now.tv_nsec, (long)getpid());
    int file = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0 || write(file, line, length) != length)
        return 1;
    if (argc > 2)
        sleep(atoi(argv[2]));
    return 0;
}
