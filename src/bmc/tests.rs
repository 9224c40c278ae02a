//! A whole BMC, from the first question to what Register says.

use secrecy::ExposeSecret;

use super::testing::{FakeBmc, Quirks, User};
use super::*;

fn wanted(super_user_password: Option<&SecretString>) -> Wanted<'_> {
    Wanted {
        user: USER,
        super_user: SUPER_USER,
        super_user_password,
    }
}

/// The report, and the BMC as it is then.
fn secured(bmc: FakeBmc, wanted: &Wanted<'_>) -> Report {
    Survey::of(Talk::impatient(bmc)).unwrap().secure(wanted)
}

fn texts(errors: &[Error]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_bmc_is_reported_with_its_new_user() {
    let mut bmc = FakeBmc::good();
    // An empty but good inventory.
    bmc.fru = vec![1, 0, 0, 0, 0, 0, 0, 0xff];
    let report = secured(bmc, &wanted(None));
    assert_eq!(
        (texts(&report.faults), texts(&report.notes)),
        (vec![], vec![])
    );
    assert_eq!(report.warning(), "");
    let shown = format!("{report:?}");
    let bmc = report.bmc.unwrap();
    let password = bmc.password.expose_secret();
    assert!(is_strong(password.as_bytes()) && password.len() == 16);
    assert!(!shown.contains(password), "{shown}");
    assert_eq!(bmc.address, "192.0.2.7:623");
    assert_eq!(bmc.mac, "3c:ec:ef:01:02:03");
    assert_eq!(bmc.user, "metal");
    assert_eq!(bmc.interface, "lanplus");
    assert_eq!(bmc.version, "2.45");
    assert_eq!(bmc.power_state, "ON");
}

#[test]
fn the_super_user_is_set_up_beside_the_machines_user_and_only_when_asked() {
    let secret = SecretString::from("sup3r-s3cret");
    let mut talk = Talk::impatient(FakeBmc::good());
    let mut users = users::list(&mut talk, 1).unwrap();
    let want = wanted(Some(&secret));
    super_user(&mut talk, &mut users, 1, &want, &secret).unwrap();
    machine_user(&mut talk, &mut users, 1, USER).unwrap();
    let bmc = talk.transport();
    assert_eq!(
        (bmc.users[2].name.as_str(), bmc.users[3].name.as_str()),
        ("root", "metal")
    );
    assert!(bmc.users[2].password.starts_with(b"sup3r-s3cret\0"));
    assert_eq!(
        bmc.users[1],
        FakeBmc::good().users[1],
        "the maker's user is left alone"
    );

    let mut dell = FakeBmc::good();
    dell.users[1].name = "root".into();
    let mut talk = Talk::impatient(dell);
    let mut users = users::list(&mut talk, 1).unwrap();
    super_user(&mut talk, &mut users, 1, &want, &secret).unwrap();
    assert!(
        talk.transport().users[1]
            .password
            .starts_with(b"sup3r-s3cret")
    );
    assert_eq!(talk.transport().users[2], User::default());
}

#[test]
fn the_last_free_number_is_the_machines_users() {
    let mut bmc = FakeBmc::good();
    for (number, user) in bmc.users.iter_mut().enumerate().skip(3) {
        user.name = format!("user{number}");
    }
    let secret = SecretString::from("sup3r-s3cret");
    let report = secured(bmc, &wanted(Some(&secret)));
    let faults = texts(&report.faults);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("is called root"), "{faults:?}");
    assert!(report.bmc.is_some());
}

#[test]
fn a_super_user_that_cannot_be_is_a_fault_and_the_machines_user_is_made() {
    let long = SecretString::from("0123456789abcdefghijk");
    let short = SecretString::from("short");
    let same = Wanted {
        super_user: USER,
        ..wanted(Some(&short))
    };
    for (want, why) in [
        (wanted(Some(&long)), "1 to 20 bytes, this one has 21"),
        (same, "are both \"metal\""),
    ] {
        let report = secured(FakeBmc::good(), &want);
        let faults = texts(&report.faults).join("\n");
        assert!(
            faults.contains(why) && !faults.contains("0123456789"),
            "{faults}"
        );
        assert!(report.bmc.is_some());
    }
}

#[test]
fn half_broken_bmcs_give_what_they_can() {
    let q = Quirks::default;
    let no_lan = FakeBmc {
        media: Default::default(),
        ..FakeBmc::good()
    };
    let closed = FakeBmc {
        channel_access: 0,
        ..FakeBmc::good()
    };
    let quirky = |quirks| FakeBmc {
        quirks,
        ..FakeBmc::good()
    };
    // Is it reported, and is it a fault, and what is said.
    let table: [(&str, FakeBmc, (bool, bool), &str); 6] = [
        (
            "no LAN",
            no_lan,
            (false, true),
            "no LAN channel of the BMC has both",
        ),
        (
            "no users",
            quirky(Quirks {
                no_users: true,
                ..q()
            }),
            (false, true),
            "Get User Access with 0xc1",
        ),
        (
            "forgets",
            quirky(Quirks {
                forgets_password: true,
                ..q()
            }),
            (false, true),
            "did not keep it",
        ),
        (
            "a rule for passwords",
            quirky(Quirks {
                refuses_passwords: 2,
                ..q()
            }),
            (true, false),
            "",
        ),
        (
            "cannot test",
            quirky(Quirks {
                cannot_test: true,
                ..q()
            }),
            (true, false),
            "not verified",
        ),
        (
            "IPMI over LAN off",
            closed,
            (true, true),
            "IPMI over LAN is off on the BMC's channel 1",
        ),
    ];
    for (case, bmc, expected, why) in table {
        let report = secured(bmc, &wanted(None));
        let found = (report.bmc.is_some(), !report.faults.is_empty());
        assert_eq!(found, expected, "{case}: {:?}", report.faults);
        let said = [texts(&report.faults), texts(&report.notes)]
            .concat()
            .join("\n");
        assert!(said.contains(why), "{case}: {said}");
        assert_eq!(report.warning().starts_with("BMC: "), found.1, "{case}");
    }
}

#[test]
fn a_bmc_that_is_busy_every_other_time_is_set_up() {
    for code in [0xc0, 0xc3, 0xcf] {
        let quirks = Quirks {
            every_second: Some(code),
            ..Quirks::default()
        };
        let bmc = FakeBmc {
            quirks,
            ..FakeBmc::good()
        };
        let report = secured(bmc, &wanted(None));
        assert!(report.bmc.is_some(), "{code:#x}: {:?}", report.faults);
    }
}

#[test]
fn no_device_is_no_bmc_and_a_warning_only_where_the_firmware_announces_one() {
    let sys = tempfile::tempdir().unwrap();
    let missing = Path::new("/nonexistent/ipmi0");
    let error = survey(missing, sys.path()).err().unwrap();
    assert!(matches!(error, Error::Absent { announced: false }));
    assert_eq!(Report::without(error).warning(), "");
    std::fs::create_dir_all(sys.path().join(ANNOUNCED)).unwrap();
    let error = survey(missing, sys.path()).err().unwrap();
    assert!(
        Report::without(error)
            .warning()
            .contains("firmware announces a BMC")
    );
}

#[test]
fn passwords_keep_the_rules() {
    for _ in 0..100 {
        let password = strong_password().unwrap();
        assert!(is_strong(password.expose_secret().as_bytes()));
    }
    for weak in ["abcdefgh1", "ABCDEFGH1", "ABCdefgh", "AAbc1", ""] {
        assert!(!is_strong(weak.as_bytes()), "{weak}");
    }
}

#[test]
fn what_the_bmc_says_of_part_numbers_counts_more_than_smbios_unless_it_says_nothing() {
    let mut request: crate::control::api::Register = serde_json::from_str(
        r#"{"uuid":"0c7d3c57-5e0e-4f0a-9f5b-5a1e6f2b7c10","hardware":{"memory":"1"},
            "metalHammerVersion":"x","partition":"fra",
            "fru":{"boardMfg":"SMBIOS","boardPartNumber":"SMBIOS","productSerial":"SMBIOS"}}"#,
    )
    .unwrap();
    request.tags.push("kept".into());
    let said = Fru {
        board_mfg: "Maker\u{7}".into(),
        board_part_number: "To be filled by O.E.M.".into(),
        product_serial: "000000".into(),
        chassis_part_serial: "C".repeat(300),
        ..Fru::default()
    };
    let merged = crate::hardware::register::with_bmc(request, None, &said);
    let fru = merged.fru.unwrap();
    assert_eq!(fru.board_mfg, "Maker");
    assert_eq!(fru.board_part_number, "SMBIOS");
    assert_eq!(fru.product_serial, "SMBIOS");
    assert_eq!(fru.chassis_part_serial.len(), 256);
    assert_eq!((merged.bmc, merged.tags), (None, vec!["kept".to_owned()]));
}

#[test]
fn a_password_is_in_the_request_and_in_no_debug_output() {
    let bmc = secured(FakeBmc::good(), &wanted(None)).bmc.unwrap();
    let password = bmc.password.expose_secret().to_owned();
    let json = serde_json::to_string(&bmc).unwrap();
    assert!(json.contains(&format!(r#""password":"{password}""#)));
    assert!(json.contains(r#""powerState":"ON""#));
    assert!(!format!("{bmc:?}").contains(&password));
    assert!(serde_json::from_str::<Bmc>(&json).unwrap() == bmc);
}
