//! Secure Boot with a key of the test: made for it, thrown away with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::run;
use super::root;

/// Debian's empty variable store, where no key is enrolled.
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// Who owns the keys in the variables: any GUID.
const OWNER: &str = "3b0e7c52-6f1d-4a7e-9c88-5a1b2c3d4e5f";

/// A private key and its certificate.
pub struct Keys {
    /// PEM.
    pub key: PathBuf,
    /// PEM.
    pub certificate: PathBuf,
}

impl Keys {
    /// New ones in `dir`.
    pub fn make(dir: &Path) -> Self {
        let keys = Self {
            key: dir.join("secure-boot.key"),
            certificate: dir.join("secure-boot.pem"),
        };
        run(Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args(["-subj", "/CN=metal-anvil test", "-keyout"])
            .arg(&keys.key)
            .arg("-out")
            .arg(&keys.certificate));
        keys
    }

    /// Writes a variable store whose PK, KEK and db are this key, with Secure Boot on.
    pub fn enroll(&self, vars: &Path) {
        let mut command = Command::new(root().join("target/venv-secure-boot/bin/virt-fw-vars"));
        command.args(["--input", OVMF_VARS, "--secure-boot", "--output"]);
        command.arg(vars);
        for what in ["--set-pk", "--add-kek", "--add-db"] {
            command.args([what, OWNER]).arg(&self.certificate);
        }
        run(&mut command);
    }

    /// The EFI program with a signature.
    pub fn sign(&self, dir: &Path, program: &[u8]) -> Vec<u8> {
        let (plain, signed) = (dir.join("plain.efi"), dir.join("signed.efi"));
        fs::write(&plain, program).expect("write the program");
        run(Command::new("sbsign")
            .arg("--key")
            .arg(&self.key)
            .arg("--cert")
            .arg(&self.certificate)
            .arg("--output")
            .arg(&signed)
            .arg(&plain));
        fs::read(&signed).expect("read the signed program")
    }
}
