/* lvm asks systemd's bus whether services run, its journal to take lines and its machine id
 * for a name. All of it fails here as on a host without systemd: a negative errno. */
#include <errno.h>

#define ABSENT(name) int name(void) { return -ENOSYS; }
ABSENT(sd_bus_call_method)
ABSENT(sd_bus_message_read)
ABSENT(sd_bus_open_system)
ABSENT(sd_id128_get_machine_app_specific)
ABSENT(sd_journal_printv_with_location)
ABSENT(sd_journal_send_with_location)

/* "This error is not of that name", and pointers that were never given out. */
int sd_bus_error_has_name(void) { return 0; }
void sd_bus_error_free(void) {}
void *sd_bus_flush_close_unref(void *bus) { (void)bus; return 0; }
void *sd_bus_message_unref(void *message) { (void)message; return 0; }
