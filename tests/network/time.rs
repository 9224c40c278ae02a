//! The clock: SNTP and the boot helper's `Date`, before TLS.
