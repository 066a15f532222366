/* What a disk keeps when the power fails: only what was synchronised.

   Preloaded into a writer, this keeps a shadow of one tree of folders (POWER_FROM) in another (POWER_TO). A file's
   bytes get into the shadow when it is fsynced; names change there only when their folder is fsynced, and a rename
   out of that folder then arrives as a whole, as in the journals of ext4, XFS and btrfs. POWER_DELAY_MS makes the
   disk slow instead. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int in_shadow(char *out, const char *real) {
    const char *from = getenv("POWER_FROM"), *to = getenv("POWER_TO");
    size_t length = from ? strlen(from) : 0;
    if (!from || !to || strncmp(real, from, length) || (real[length] && real[length] != '/')) return 0;
    return snprintf(out, PATH_MAX, "%s%s", to, real + length) < PATH_MAX;
}

static struct { char from[PATH_MAX], to[PATH_MAX]; ino_t inode; } moved[4096];
static int moves;

static void blob_path(char *out, ino_t inode) {
    snprintf(out, PATH_MAX, "%s/.blobs/%lu", getenv("POWER_TO"), (unsigned long)inode);
}

static void copy_blob(int handle, ino_t inode) {
    char path[PATH_MAX], again[64];
    struct stat facts;
    blob_path(path, inode);
    unlink(path); /* names that are in the shadow keep what they had: inode numbers come again */
    snprintf(again, sizeof again, "/proc/self/fd/%d", handle);
    int in = open(again, O_RDONLY), out = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    if (in >= 0 && out >= 0 && !fstat(in, &facts)) {
        off_t at = 0;
        while (at < facts.st_size && sendfile(out, in, &at, facts.st_size - at) > 0) { }
    }
    if (in >= 0) close(in);
    if (out >= 0) close(out);
}

static void copy_names(const char *real, const char *shadow) {
    char old[2 * PATH_MAX], name[2 * PATH_MAX], blob[PATH_MAX];
    struct dirent *entry;
    struct stat facts;
    DIR *folder = opendir(shadow);
    while (folder && (entry = readdir(folder)))
        if (entry->d_type == DT_REG) {
            snprintf(old, sizeof old, "%s/%s", shadow, entry->d_name);
            unlink(old);
        }
    if (folder) closedir(folder);
    folder = opendir(real);
    while (folder && (entry = readdir(folder)))
        if (entry->d_type == DT_REG) {
            snprintf(name, sizeof name, "%s/%s", real, entry->d_name);
            if (stat(name, &facts)) continue;
            blob_path(blob, facts.st_ino);
            snprintf(old, sizeof old, "%s/%s", shadow, entry->d_name);
            if (link(blob, old)) close(open(old, O_CREAT | O_WRONLY, 0600)); /* a name without its bytes */
        }
    if (folder) closedir(folder);
}

static void arrive(const char *folder) {
    char blob[PATH_MAX], target[PATH_MAX];
    size_t length = strlen(folder);
    int kept = 0;
    for (int number = 0; number < moves; number++) {
        const char *from = moved[number].from;
        if (!strncmp(from, folder, length) && from[length] == '/' && !strchr(from + length + 1, '/')) {
            blob_path(blob, moved[number].inode);
            if (in_shadow(target, moved[number].to) && link(blob, target))
                close(open(target, O_CREAT | O_WRONLY, 0600));
        } else {
            moved[kept++] = moved[number];
        }
    }
    moves = kept;
}

int rename(const char *from, const char *to) {
    static int (*real_rename)(const char *, const char *);
    char shadow[PATH_MAX];
    struct stat facts;
    if (!real_rename) real_rename = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    int known = getenv("POWER_TO") && in_shadow(shadow, from) && !stat(from, &facts);
    int result = real_rename(from, to);
    if (!result && known) {
        pthread_mutex_lock(&lock);
        if (moves < (int)(sizeof moved / sizeof *moved)) {
            snprintf(moved[moves].from, PATH_MAX, "%s", from);
            snprintf(moved[moves].to, PATH_MAX, "%s", to);
            moved[moves++].inode = facts.st_ino;
        }
        pthread_mutex_unlock(&lock);
    }
    return result;
}

int fsync(int handle) {
    static int (*real_fsync)(int);
    const char *delay = getenv("POWER_DELAY_MS");
    char link_name[64], real[PATH_MAX] = "", shadow[PATH_MAX];
    struct stat facts;
    if (!real_fsync) real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    if (delay) usleep(1000 * atoi(delay));
    int result = real_fsync(handle);
    snprintf(link_name, sizeof link_name, "/proc/self/fd/%d", handle);
    if (result || readlink(link_name, real, sizeof real - 1) < 0 || fstat(handle, &facts)) return result;
    if (!in_shadow(shadow, real)) return result;
    pthread_mutex_lock(&lock);
    if (S_ISDIR(facts.st_mode)) {
        arrive(real);
        copy_names(real, shadow);
    } else copy_blob(handle, facts.st_ino);
    pthread_mutex_unlock(&lock);
    return result;
}
