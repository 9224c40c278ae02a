/* The kernel of the medium has no SELinux: what libselinux says then, and nothing to label. */
#include <errno.h>

int is_selinux_enabled(void) { return 0; }
int setfscreatecon(const char *context) { (void)context; return 0; }
void freecon(char *context) { (void)context; }

#define ABSENT(name) int name(void) { errno = ENOTSUP; return -1; }
ABSENT(lsetfilecon)
ABSENT(matchpathcon)
