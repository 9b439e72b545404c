/* Memory of torch's tensors and scratch buffers that ends where forbidden memory begins.

   Preloaded, it takes the place of posix_memalign: every buffer ends at a page's end (up to its
   alignment), 4 MiB that nobody may touch follow, and freed buffers stay forbidden. A kernel that
   writes or reads past its buffer then crashes at once, every time, instead of changing what lies
   there. Address space is never used twice; when it runs out, malloc's own memory is given. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static const size_t PAGE = 4096, GAP = (size_t)1 << 22, SPAN = (size_t)1 << 44;
static const int FRESH = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
static uintptr_t base;
static _Atomic uintptr_t next;

__attribute__((constructor)) static void reserve(void) {
    void *start = mmap(0, SPAN, PROT_NONE, FRESH, -1, 0);
    if (start != MAP_FAILED) next = base = (uintptr_t)start;
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    size_t used = (size + alignment - 1) / alignment * alignment;
    size_t pages = (used + PAGE - 1) / PAGE * PAGE;
    if (base && alignment <= PAGE) {
        uintptr_t header = atomic_fetch_add(&next, PAGE + pages + GAP);
        if (header + PAGE + pages + GAP < base + SPAN
            && !mprotect((void *)header, PAGE + pages, PROT_READ | PROT_WRITE)) {
            *(size_t *)header = pages;
            *out = (void *)(header + PAGE + pages - used);
            return 0;
        }
    }
    *out = __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}

void free(void *buffer) {
    uintptr_t address = (uintptr_t)buffer;
    if (!base || address < base || address >= base + SPAN) {
        __libc_free(buffer);
        return;
    }
    uintptr_t header = address / PAGE * PAGE - PAGE; /* a buffer starts in the page after it */
    mmap((void *)header, PAGE + *(size_t *)header, PROT_NONE, FRESH | MAP_FIXED, -1, 0);
}
