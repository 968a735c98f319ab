/* A program that does on purpose what disturbs a supervisor of its calls.
 *
 * usage: hostile SCENARIO
 *
 * Prints `done`, or the line and the condition that does not hold. */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#define PORT 6000

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("line %d: %s (errno %d)\n", __LINE__, #condition, errno);                       \
            fflush(stdout);                                                                        \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static struct sockaddr_vm address(unsigned cid, unsigned port) {
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    return address;
}

static int bind_to(int fd, unsigned cid, unsigned port) {
    struct sockaddr_vm to = address(cid, port);
    return bind(fd, (struct sockaddr *)&to, sizeof to);
}

static int connect_to(int fd, unsigned cid, unsigned port) {
    struct sockaddr_vm to = address(cid, port);
    return connect(fd, (struct sockaddr *)&to, sizeof to);
}

static int listener(void) {
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK(bind_to(fd, VMADDR_CID_ANY, PORT) == 0);
    CHECK(listen(fd, 128) == 0);
    return fd;
}

static void exchange(int listener) {
    char bytes[2];
    int client = socket(AF_VSOCK, SOCK_STREAM, 0);
    CHECK(connect_to(client, VMADDR_CID_LOCAL, PORT) == 0);
    int server = accept(listener, NULL, NULL);
    CHECK(server >= 0);
    CHECK(write(client, "ab", 2) == 2);
    CHECK(read(server, bytes, 2) == 2);
    close(client);
    close(server);
}

static volatile int is_over;
static volatile int emulated;
static int foreign, changing;

static void *replace(void *unused) {
    while (!is_over) {
        dup2(foreign, changing);
        dup2(emulated, changing);
    }
    return unused;
}

/* A descriptor becomes one of another file while calls on it are answered, which must not concern that file. */
static void replaced(void) {
    listener();
    foreign = socket(AF_UNIX, SOCK_STREAM, 0);
    emulated = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK, 0);
    changing = dup(emulated);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, replace, NULL) == 0);
    for (double end = seconds() + 2; seconds() < end;) {
        int next = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK, 0), last = emulated;
        emulated = next;
        close(last);
        bind_to(changing, VMADDR_CID_LOCAL, VMADDR_PORT_ANY);
        connect_to(changing, VMADDR_CID_LOCAL, PORT);
        struct sockaddr_un name;
        socklen_t length = sizeof name;
        CHECK(getsockname(foreign, (struct sockaddr *)&name, &length) == 0);
        CHECK(length == sizeof name.sun_family);
        length = sizeof name;
        CHECK(getpeername(foreign, (struct sockaddr *)&name, &length) == -1 && errno == ENOTCONN);
    }
    is_over = 1;
    pthread_join(thread, NULL);
}

/* One process binds sockets as long as it can. Another one is served as before. */
static void binds_without_end(void) {
    sigset_t signals;
    int signal, status;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    int own = listener();
    pid_t other = fork();
    if (other == 0) {
        sigwait(&signals, &signal);
        for (int i = 0; i < 20; i++) {
            double start = seconds();
            exchange(own);
            CHECK(seconds() - start < 2);
        }
        _exit(0);
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i < 5000; i++) {
        int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        if (fd < 0 || bind_to(fd, VMADDR_CID_LOCAL, VMADDR_PORT_ANY) != 0)
            break;
    }
    kill(other, SIGUSR1);
    CHECK(waitpid(other, &status, 0) == other && status == 0);
}

static void *leave(void *unused) {
    /* Long enough for the others to wait in their calls. */
    usleep(100000);
    execl("/proc/self/exe", "hostile", "accepts_after_exec", (char *)NULL);
    _exit(9);
    return unused;
}

static void *accept_one(void *listener) {
    accept((int)(long)listener, NULL, NULL);
    return NULL;
}

/* A thread that is not the first one executes a program while others wait in calls: it gets another number. */
static void executes_by_another_thread(void) {
    int fd = listener();
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    setenv("LISTENER", number, 1);
    pthread_t thread;
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&thread, NULL, accept_one, (void *)(long)fd) == 0);
    CHECK(pthread_create(&thread, NULL, leave, NULL) == 0);
    for (;;)
        pause();
}

static void accepts_after_exec(void) {
    exchange(atoi(getenv("LISTENER")));
}

int main(int count, char **arguments) {
    static const struct {
        const char *name;
        void (*run)(void);
    } scenarios[] = {
        {"replaced", replaced},
        {"binds_without_end", binds_without_end},
        {"executes_by_another_thread", executes_by_another_thread},
        {"accepts_after_exec", accepts_after_exec},
    };
    for (size_t i = 0; count == 2 && i < sizeof scenarios / sizeof *scenarios; i++) {
        if (strcmp(arguments[1], scenarios[i].name) == 0) {
            scenarios[i].run();
            puts("done");
            return 0;
        }
    }
    return 2;
}
