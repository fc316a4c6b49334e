/* A disk that needs 3 ms more for each sync, for both sides of a comparison alike: Postgres is started with this library
   preloaded. Everything is synced as before. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int fdatasync(int file)
{
    static int (*real)(int);
    const struct timespec delay = {0, 3000000};
    if (!real)
        real = (int (*)(int)) dlsym(RTLD_NEXT, "fdatasync");
    nanosleep(&delay, 0);
    return real(file);
}
