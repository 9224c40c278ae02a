use super::super::testing::{FakeBmc, Quirks, User};
use super::*;

const LONG: &str = "0123456789abcdefghij";

fn users(fixed_names: u8, names: &[&str]) -> Users {
    let names = names.iter().enumerate();
    Users {
        fixed_names,
        names: names
            .map(|(n, name)| (UserId(n as u8 + 2), (*name).to_owned()))
            .collect(),
    }
}

#[test]
fn a_user_keeps_its_number_and_a_new_one_gets_the_first_free_above_two() {
    let own = |id| Some(Slot::Own(UserId(id)));
    let free = |id| Some(Slot::Free(UserId(id)));
    let table: [(&str, u8, &[&str], Option<Slot>); 8] = [
        ("Supermicro, new", 1, &["ADMIN", "", ""], free(3)),
        ("Supermicro, known", 1, &["ADMIN", "", "metal"], own(4)),
        ("Dell, others before", 1, &["root", "ops", "", ""], free(4)),
        ("number 2 is free and stays so", 1, &["", "", ""], free(3)),
        (
            "but is used where it has the name",
            1,
            &["metal", "", ""],
            own(2),
        ),
        ("fixed names", 4, &["", "", "", ""], free(5)),
        ("full", 1, &["ADMIN", "a", "b"], None),
        ("twice", 1, &["ADMIN", "metal", "metal"], own(3)),
    ];
    for (case, fixed, names, expected) in table {
        assert_eq!(users(fixed, names).slot("metal"), expected, "{case}");
    }
}

#[test]
fn names() {
    for good in ["metal", "ADMIN", "sixteen.letters_", "a"] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "seventeen-letters",
        "two words",
        "m\u{e9}tal",
        "a\0",
        "x\n",
    ] {
        assert!(check_name(bad).is_err(), "{bad:?}");
    }
}

/// Ensures the user `metal` with this password and answers the BMC as it is then.
fn ensured(bmc: FakeBmc, password: &str) -> (FakeBmc, Result<Verified, Error>) {
    let mut talk = Talk::impatient(bmc);
    let mut users = list(&mut talk, 1).unwrap();
    let made = ensure(&mut talk, &mut users, 1, "metal", &password.into());
    if made.is_ok() {
        assert!(users.names.iter().any(|(_, name)| name == "metal"));
    }
    (talk.transport().clone(), made)
}

fn quirky(quirks: Quirks) -> FakeBmc {
    FakeBmc {
        quirks,
        ..FakeBmc::good()
    }
}

fn padded(password: &str, size: usize) -> Vec<u8> {
    let mut bytes = password.as_bytes().to_vec();
    bytes.resize(size, 0);
    bytes
}

#[test]
fn a_new_user_is_an_enabled_administrator_and_others_are_untouched() {
    let before = FakeBmc::good();
    let (after, made) = ensured(before.clone(), "s3cretPassw0rd");
    assert_eq!(made.unwrap(), Verified::Yes);
    let wanted = User {
        name: "metal".into(),
        password: padded("s3cretPassw0rd", 16),
        enabled: true,
        // Link authentication, IPMI messaging, administrator.
        access: 0x34,
    };
    assert_eq!(after.users[2], wanted);
    for (number, (old, new)) in before.users.iter().zip(&after.users).enumerate() {
        assert!(number == 2 || old == new, "user {}", number + 1);
    }
    // Once more with another password: the same number.
    let (again, made) = ensured(after, "an0therSecret");
    assert_eq!(made.unwrap(), Verified::Yes);
    assert_eq!(again.users[2].password, padded("an0therSecret", 16));
    assert_eq!(
        again
            .users
            .iter()
            .filter(|user| user.name == "metal")
            .count(),
        1
    );
}

#[test]
fn password_sizes_of_different_bmcs() {
    let q = Quirks::default;
    let yes = Some(Verified::Yes);
    let table: [(&str, Quirks, &str, Option<Verified>, usize); 7] = [
        ("as the standard says", q(), "short", yes, 16),
        ("20 bytes where they are needed", q(), LONG, yes, 20),
        (
            "knows 20 only",
            Quirks {
                refuses_size: Some(16),
                ..q()
            },
            "short",
            yes,
            20,
        ),
        (
            "keeps all in 20",
            Quirks {
                stores_as: Some(20),
                ..q()
            },
            "short",
            yes,
            20,
        ),
        (
            "keeps all in 16",
            Quirks {
                stores_as: Some(16),
                ..q()
            },
            "short",
            yes,
            16,
        ),
        (
            "cannot test",
            Quirks {
                cannot_test: true,
                ..q()
            },
            "short",
            Some(Verified::CannotSay),
            16,
        ),
        (
            "IPMI 1.5, long password",
            Quirks {
                refuses_size: Some(20),
                ..q()
            },
            LONG,
            None,
            0,
        ),
    ];
    for (case, quirks, password, expected, size) in table {
        let (bmc, made) = ensured(quirky(quirks), password);
        assert_eq!(made.ok(), expected, "{case}");
        let stored = bmc.user("metal").map_or(&[][..], |user| &user.password);
        assert_eq!(stored.len(), size, "{case}");
    }
    // Cut to 16 of 20 bytes and called stored: the test finds out.
    let cut = Quirks {
        stores_as: Some(16),
        ..q()
    };
    let (_, made) = ensured(quirky(cut), LONG);
    assert!(matches!(made, Err(Error::NotKept { .. })), "{made:?}");
}

#[test]
fn passwords_that_no_bmc_can_store_are_not_sent() {
    for password in ["", "0123456789abcdefghijk", "with\0zero"] {
        let before = FakeBmc::good();
        let (after, made) = ensured(before, password);
        let error = made.unwrap_err().to_string();
        assert!(password.is_empty() || !error.contains(password), "{error}");
        assert!(after.users[2].password.is_empty() && !after.users[2].enabled);
    }
}

#[test]
fn what_a_bmc_says_and_does_not_do_is_found_out() {
    let q = Quirks::default;
    let table = [
        (
            Quirks {
                forgets_password: true,
                ..q()
            },
            "the password of user 3",
        ),
        (
            Quirks {
                forgets_rights: true,
                ..q()
            },
            "the user's rights on the LAN channel of user 3",
        ),
    ];
    for (quirks, why) in table {
        let (_, made) = ensured(quirky(quirks), "s3cret");
        let error = made.unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
    }
}

#[test]
fn a_name_that_was_set_keeps_its_number_when_the_rest_fails() {
    let mut talk = Talk::impatient(quirky(Quirks {
        // In both sizes.
        refuses_passwords: 2,
        ..Quirks::default()
    }));
    let mut users = list(&mut talk, 1).unwrap();
    let secret = SecretString::from("s3cretPassw0rd");
    assert!(ensure(&mut talk, &mut users, 1, "metal", &secret).is_err());
    assert_eq!(users.slot("metal"), Some(Slot::Own(UserId(3))));
    assert_eq!(users.slot("root"), Some(Slot::Free(UserId(4))));
}

#[test]
fn free_numbers_without_an_answer_are_free() {
    for code in [0xcb, 0xcc] {
        let quirks = Quirks {
            free_name_code: Some(code),
            ..Quirks::default()
        };
        let (bmc, made) = ensured(quirky(quirks), "s3cret");
        assert_eq!(made.unwrap(), Verified::Yes);
        assert_eq!(bmc.users[2].name, "metal");
    }
}

#[test]
fn a_full_bmc_is_left_as_it_is() {
    let mut full = FakeBmc::good();
    for (number, user) in full.users.iter_mut().enumerate() {
        user.name = format!("user{number}");
    }
    let (after, made) = ensured(full.clone(), "s3cret");
    let error = made.unwrap_err().to_string();
    assert!(
        error.contains("none of the BMC's 10 users is called metal"),
        "{error}"
    );
    assert_eq!(after.users, full.users);
}
