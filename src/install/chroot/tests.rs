//! Installers in a real chroot. Each test has a mount namespace of its own, which needs root.

use std::os::unix::fs::{PermissionsExt, symlink};

use nix::sched::{CloneFlags, unshare};

use super::*;

/// A static program, so that the target needs no libraries. What it does depends on the
/// file `/mode` in the target.
const PROGRAM: &str = r#"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static long magic(const char *path) {
    struct statfs s;
    return statfs(path, &s) ? -1 : (long)s.f_type;
}

int main(void) {
    char mode[32] = "", directory[64] = "";
    FILE *f = fopen("/mode", "r");
    if (!f || !fgets(mode, sizeof mode, f)) return 99;
    if (!strcmp(mode, "fail")) {
        for (int i = 0; i < 40; i++) printf("step %d\n", i);
        printf("userdata: {\"key\": \"");
        for (int i = 0; i < 3000; i++) putchar('u');
        printf("\"}\n");
        fflush(stdout);
        fprintf(stderr, "the password is hunter22\n\033[31mno grub here\033[0m");
        return 3;
    }
    if (!strcmp(mode, "crash")) { raise(SIGSEGV); }
    if (!strcmp(mode, "hang")) {
        puts("going to sleep"); fflush(stdout);
        for (;;) pause();
    }
    if (!strcmp(mode, "daemon")) {
        if (fork() == 0) { for (;;) pause(); }
        return 0;
    }
    if (!strcmp(mode, "quiet")) {
        close(1); close(2);
        usleep(200000);
        return 4;
    }
    f = fopen("/report", "w");
    char **e; extern char **environ;
    for (e = environ; *e; e++) fprintf(f, "env %s\n", *e);
    fprintf(f, "cwd %s\n", getcwd(directory, sizeof directory));
    fprintf(f, "proc %lx sys %lx tmp %lx run %lx\n", magic("/proc"), magic("/sys"),
            magic("/tmp"), magic("/run"));
    fprintf(f, "null %d self %d leader %d\n", access("/dev/null", W_OK), access("/proc/self", F_OK),
            getsid(0) == getpid());
    fprintf(f, "stdin %zd\n", read(0, mode, 1));
    fclose(f);
    return 0;
}
"#;

struct Guest {
    dir: tempfile::TempDir,
    root: RootDir,
}

impl Guest {
    /// A target with the program as its installer, in a mount namespace of this thread.
    fn new(mode: &str) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("program.c");
        std::fs::write(&source, PROGRAM).unwrap();
        let built = std::process::Command::new("cc")
            .args(["-static", "-O1", "-w", "-o"])
            .arg(dir.path().join("os-installer"))
            .arg(&source)
            .status()
            .unwrap();
        assert!(built.success());
        std::fs::write(dir.path().join("mode"), mode).unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        Self { dir, root }
    }

    fn run(&self, deadline: Duration) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let userdata = format!("#cloud-config\n{{\"key\": \"{}\"}}\n", "u".repeat(3000));
        let secrets = [SecretString::from("hunter22"), SecretString::from(userdata)];
        let installer = find_installer(&self.root).unwrap().unwrap();
        let result = runtime.block_on(run(&self.root, installer, deadline, &secrets));
        assert_eq!(self.mounts(), Vec::<String>::new(), "left mounted");
        result
    }

    fn mounts(&self) -> Vec<String> {
        let below = self.dir.path().to_str().unwrap().to_owned();
        std::fs::read_to_string("/proc/thread-self/mounts")
            .unwrap()
            .lines()
            .filter(|line| line.contains(&below))
            .map(str::to_owned)
            .collect()
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn an_installer_has_what_it_needs() {
    let guest = Guest::new("good");
    guest.run(LONG).unwrap();
    let report = std::fs::read_to_string(guest.dir.path().join("report")).unwrap();
    // Magic numbers of linux/magic.h: proc, sysfs, tmpfs twice.
    assert!(
        report.contains("proc 9fa0 sys 62656572 tmp 1021994 run 1021994"),
        "{report}"
    );
    assert!(report.contains("null 0 self 0 leader 1"), "{report}");
    assert!(report.contains("cwd /\n"), "{report}");
    assert!(report.contains("stdin 0\n"), "{report}");
    let variables: Vec<&str> = report.lines().filter(|l| l.starts_with("env ")).collect();
    assert_eq!(variables.len(), 5, "{report}");
    assert!(variables.contains(&"env HOME=/root"), "{report}");
}

#[test]
fn a_failure_brings_code_and_last_lines() {
    let guest = Guest::new("fail");
    let error = guest.run(LONG).unwrap_err().to_string();
    assert!(error.contains("exit code 3"), "{error}");
    assert!(
        error.contains("step 39") && !error.contains("step 20\n"),
        "{error}"
    );
    assert!(
        error.ends_with("the password is [secret]\n[31mno grub here[0m"),
        "{error}"
    );
    assert!(error.contains("\nuserdata: [secret]\n"), "{error}");
    let secrets = ["hunter22", "uuuuuu", "\x1b"];
    assert!(!secrets.iter().any(|text| error.contains(text)), "{error}");
}

#[test]
fn a_crash_is_named() {
    let error = Guest::new("crash").run(LONG).unwrap_err().to_string();
    assert!(error.contains("killed by SIGSEGV"), "{error}");
}

#[test]
fn a_hang_ends_at_the_deadline() {
    let guest = Guest::new("hang");
    let error = guest.run(Duration::from_millis(700)).unwrap_err();
    let Error::Deadline { tail, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(tail, "going to sleep");
}

#[test]
fn what_it_leaves_behind_is_killed() {
    let began = std::time::Instant::now();
    Guest::new("daemon").run(LONG).unwrap();
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn silence_is_not_the_end() {
    let error = Guest::new("quiet").run(LONG).unwrap_err().to_string();
    assert!(error.contains("exit code 4"), "{error}");
}

#[test]
fn a_missing_interpreter_is_explained() {
    let guest = Guest::new("good");
    let path = guest.dir.path().join("os-installer");
    std::fs::write(&path, "#!/bin/no-such-shell\n").unwrap();
    let error = guest.run(LONG).unwrap_err().to_string();
    assert!(error.contains("interpreter"), "{error}");
}

#[test]
fn a_mount_point_that_is_a_link_is_refused() {
    let guest = Guest::new("good");
    let outside = tempfile::tempdir().unwrap();
    for to in [outside.path(), Path::new("mode-dir")] {
        std::fs::create_dir_all(guest.dir.path().join("mode-dir")).unwrap();
        let _ = std::fs::remove_file(guest.dir.path().join("run"));
        let _ = std::fs::remove_dir(guest.dir.path().join("run"));
        symlink(to, guest.dir.path().join("run")).unwrap();
        let error = guest.run(LONG).unwrap_err();
        assert!(
            matches!(error, Error::Mount { what: "tmpfs", .. }),
            "{error}"
        );
    }
}

#[test]
fn the_first_installer_wins() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootDir::open(dir.path()).unwrap();
    assert_eq!(find_installer(&root).unwrap(), None);
    for path in ["/install.sh", "/install-go", "/os-installer"] {
        root.write(Path::new(path), b"#!/bin/sh\n", 0o755).unwrap();
        assert_eq!(find_installer(&root).unwrap(), Some(path));
    }
    let file = dir.path().join("os-installer");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = find_installer(&root).unwrap_err().to_string();
    assert!(
        error.contains("/os-installer") && error.contains("100644"),
        "{error}"
    );
    // A link is followed inside the target only.
    std::fs::remove_file(&file).unwrap();
    symlink("/bin/sh", &file).unwrap();
    assert_eq!(find_installer(&root).unwrap(), Some("/install-go"));
}
