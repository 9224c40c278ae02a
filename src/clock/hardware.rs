//! The hardware clock (rtc(4)); it keeps UTC.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use jiff::Timestamp;
use jiff::tz::Offset;

/// `struct rtc_time`, linux/rtc.h.
#[repr(C)]
#[derive(Debug, PartialEq, Eq)]
pub struct RtcTime {
    sec: libc::c_int,
    min: libc::c_int,
    hour: libc::c_int,
    mday: libc::c_int,
    /// From 0.
    mon: libc::c_int,
    /// Since 1900.
    year: libc::c_int,
    /// From Sunday, 0; drivers work it out themselves.
    wday: libc::c_int,
    yday: libc::c_int,
    isdst: libc::c_int,
}

mod ioctl {
    nix::ioctl_write_ptr!(set_time, b'p', 0x0a, super::RtcTime);
}

/// Sets the clock behind the device node `path` to `time`.
///
/// # Errors
/// There is no such clock, or its driver refuses.
pub fn set(path: &Path, time: Timestamp) -> io::Result<()> {
    let device = File::open(path)?;
    let time = broken_down(time);
    // SAFETY: RTC_SET_TIME reads one struct rtc_time, which lives until the call returns.
    unsafe { ioctl::set_time(device.as_raw_fd(), &raw const time) }?;
    Ok(())
}

fn broken_down(time: Timestamp) -> RtcTime {
    let utc = Offset::UTC.to_datetime(time);
    RtcTime {
        sec: utc.second().into(),
        min: utc.minute().into(),
        hour: utc.hour().into(),
        mday: utc.day().into(),
        mon: libc::c_int::from(utc.month()) - 1,
        year: libc::c_int::from(utc.year()) - 1900,
        wday: utc.weekday().to_sunday_zero_offset().into(),
        yday: libc::c_int::from(utc.day_of_year()) - 1,
        isdst: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_down_as_the_kernel_wants_it() {
        let fields = |text: &str| {
            let RtcTime {
                sec,
                min,
                hour,
                mday,
                mon,
                year,
                wday,
                yday,
                isdst,
            } = broken_down(text.parse().unwrap());
            [sec, min, hour, mday, mon, year, wday, yday, isdst]
        };
        // 2026-11-24 is a Tuesday, day 328 of the year.
        assert_eq!(
            fields("2026-11-24T12:34:56.9Z"),
            [56, 34, 12, 24, 10, 126, 2, 327, 0]
        );
        assert_eq!(
            fields("2028-12-31T23:59:59Z"),
            [59, 59, 23, 31, 11, 128, 0, 365, 0]
        );
        assert_eq!(size_of::<RtcTime>(), 36);
    }
}
