//! What every user of a machine may see of another's processes: no secret is on a command line or in
//! an environment, whichever program the agent runs.

use std::fs;

use crate::common::*;
use crate::support::allocation::Allocation;
use crate::support::bed::Bed;
use crate::support::guest::End;
use crate::support::images::Image;
use crate::support::initrd::{built, newc};
use crate::support::machine::Start;
use crate::support::{loki, media};

/// The media's initrd with the watcher in it, which is started first.
fn watched(bed: &Bed) -> Start {
    let Start::Direct {
        kernel,
        initrd,
        append,
    } = media::agent()
    else {
        unreachable!("the agent is started directly");
    };
    let mut both = fs::read(&initrd).expect("the media's initrd");
    // An archive behind another begins at a multiple of four (Linux,
    // Documentation/driver-api/early-userspace/buffer-format.rst).
    both.resize(both.len().next_multiple_of(4), 0);
    both.extend(newc(&[("watch", built("--example", "guest_watch"))]));
    let initrd = bed.dir.join("initrd");
    fs::write(&initrd, both).expect("write the initrd");
    Start::Direct {
        kernel,
        initrd,
        append: format!("{append} rdinit=/watch"),
    }
}

#[test]
fn no_secret_is_in_the_list_of_processes() {
    let option = loki::option("processes");
    let mut bed = Bed::plan("processes").helper_options(&[&option]).start();
    loki::start(&mut bed);
    let mut machine = bed.machine(watched(&bed), vec![used_disk(&bed, "disk")]);
    let list = bed.dir.join("processes");
    machine.extra = vec!["-serial".to_owned(), format!("file:{}", list.display())];
    let url = bed.publish("tiny", &Image::built("tiny"));
    let mut guest = install(&bed, &machine, &Allocation::new(&url, "/dev/vda"));
    assert_eq!(guest.wait_end(90), End::PowerOff);

    let bytes = fs::read(&list).expect("the watcher's lines");
    let text = String::from_utf8_lossy(&bytes);
    let of = |what: &str| {
        let lines = text.lines().filter_map(move |line| {
            let (number, rest) = line.split_once(' ')?;
            let (kind, words) = rest.split_once(' ')?;
            (kind == what).then_some((number, words.trim()))
        });
        lines.collect::<Vec<_>>()
    };
    let (lines, environments) = (of("cmdline"), of("environ"));
    // That they are seen: the agent, what formats, what installs.
    for programs in [&["/init"][..], &["mke2fs", "mkfs.vfat"], &["/install-go"]] {
        let is_one = |words: &str| programs.iter().any(|name| words.contains(name));
        let seen = lines.iter().find(|(_, words)| is_one(words));
        let (number, _) = seen.unwrap_or_else(|| panic!("no {programs:?} was seen in:\n{text}"));
        let has = |(other, words): &(&str, &str)| other == number && words.contains('=');
        assert!(
            environments.iter().any(has),
            "no environment of {programs:?}"
        );
    }

    let record = bed.standin.record();
    let password = record.iter().find_map(|line| {
        let message = &line["message"];
        message["consolePassword"].as_str().map(str::to_owned)
    });
    let password = password.expect("a console password was reported");
    let infra = fs::read_to_string(bed.dir.join("infra-token")).expect("own token");
    for secret in [
        infra.trim(),
        "machine-secret-",
        "standin-superuser",
        loki::PASSWORD,
        "bG9nZ2VyOm",
        &password,
        "I2Nsb3VkLWNvbmZpZwo",
        "#cloud-config",
    ] {
        assert!(
            !text.contains(secret),
            "a secret ({}...) is in the list of processes:\n{text}",
            &secret[..6]
        );
    }
}
