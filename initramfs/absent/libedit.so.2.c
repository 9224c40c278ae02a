/* lvm's own shell, which nobody starts here: its input is at its end at once. */
char *readline(const char *prompt) { (void)prompt; return 0; }
char **rl_completion_matches(void) { return 0; }
void *remove_history(int which) { (void)which; return 0; }
int add_history(const char *line) { (void)line; return 0; }
int read_history(const char *file) { (void)file; return 0; }
int stifle_history(int most) { (void)most; return 0; }
int write_history(const char *file) { (void)file; return 0; }

const char *rl_readline_name = "";
char *rl_line_buffer;
int history_length;
int rl_attempted_completion_over;
char **(*rl_attempted_completion_function)(const char *, int, int);
