//! Random passwords.

use rand::TryRng;
use rand::rngs::SysRng;
use secrecy::SecretString;
use thiserror::Error;
use zeroize::Zeroizing;

/// The kernel gave no random numbers.
#[derive(Debug, Error)]
#[error("no random numbers from the kernel: {0}")]
pub struct NoRandom(String);

/// Letters and digits from the kernel's CSPRNG, each as likely as any other: 5.95 bits a
/// character.
///
/// # Errors
/// [`NoRandom`].
pub fn random(length: usize) -> Result<SecretString, NoRandom> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    // The largest multiple of 62 in a byte: what is above would favour the first letters.
    const FAIR: u8 = 248;
    let mut password = Zeroizing::new(String::with_capacity(length));
    let mut noise = Zeroizing::new([0_u8; 64]);
    while password.len() < length {
        SysRng
            .try_fill_bytes(noise.as_mut_slice())
            .map_err(|error| NoRandom(error.to_string()))?;
        for byte in noise.iter().filter(|&&byte| byte < FAIR) {
            if password.len() < length {
                password.push(char::from(ALPHABET[usize::from(byte % 62)]));
            }
        }
    }
    Ok(SecretString::from(password.as_str()))
}
