//! Archives that no honest tool writes: each is refused by name, and nothing leaves the root.

use proptest::prelude::*;
use tar::EntryType;

use super::*;
use crate::image::unpack::clean;

#[test]
fn hostile_members_are_refused() {
    let link = |name: &[u8], to: &[u8]| member(name, EntryType::Symlink, to, b"");
    let hard = |name: &[u8], to: &[u8]| member(name, EntryType::Link, to, b"");
    let long = [b"a/".repeat(2200), b"f".to_vec()].concat();
    let cases: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("parent", vec![file(b"../victim", b"x")], "with `..`"),
        (
            "parent inside",
            vec![file(b"a/../../victim", b"x")],
            "with `..`",
        ),
        ("absolute", vec![file(b"/etc/passwd", b"x")], "absolute"),
        ("empty", vec![file(b"", b"x")], "empty name"),
        (
            "root as a file",
            vec![file(b"./.", b"x")],
            "the root itself",
        ),
        (
            "through an absolute link",
            vec![link(b"d", b"/tmp"), file(b"d/f", b"x")],
            "leaves the root",
        ),
        (
            "through a relative link",
            vec![link(b"d", b".."), file(b"d/victim", b"x")],
            "leaves the root",
        ),
        (
            "through two links",
            vec![
                link(b"a", b"b"),
                link(b"b", b"../.."),
                file(b"a/victim", b"x"),
            ],
            "leaves the root",
        ),
        (
            "directory through a link",
            vec![
                link(b"d", b".."),
                member(b"d/new/", EntryType::Directory, b"", b""),
            ],
            "leaves the root",
        ),
        ("a loop", vec![link(b"l", b"l"), file(b"l/f", b"x")], "loop"),
        (
            "below a file",
            vec![file(b"f", b""), file(b"f/g", b"x")],
            "is a file",
        ),
        ("hard link out", vec![hard(b"h", b"../victim")], "with `..`"),
        (
            "hard link absolute",
            vec![hard(b"h", b"/etc/passwd")],
            "absolute",
        ),
        (
            "hard link through a link",
            vec![link(b"d", b".."), hard(b"h", b"d/victim")],
            "leaves the root",
        ),
        (
            "hard link to itself",
            vec![file(b"h", b""), hard(b"h", b"./h")],
            "itself",
        ),
        ("empty symlink", vec![link(b"s", b"")], "impossible target"),
        (
            "long path",
            vec![pax(&[("path", &long)]), file(b"x", b"")],
            "a name of",
        ),
        (
            "long component",
            vec![pax(&[("path", &[b'a'; 256])]), file(b"x", b"")],
            "component of 256",
        ),
        (
            "zero byte",
            vec![pax(&[("path", b"a\0b")]), file(b"x", b"")],
            "zero byte",
        ),
    ];
    for (name, members, reason) in cases {
        let target = Target::new();
        let error = target.unpack(&archive(&members)).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{name}: {error}");
        assert!(error.to_string().contains(reason), "{name}: {error}");
        target.assert_outside_untouched();
    }
}

#[test]
fn damaged_archives_are_not_taken_for_whole_ones() {
    let whole = archive(&[file(b"a", &[7; 700]), file(b"b", b"x")]);
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "without an end-of-archive"),
        (
            "no end",
            whole[..whole.len() - 1024].to_vec(),
            "without an end-of-archive",
        ),
        ("in a file", whole[..800].to_vec(), "middle of a file"),
        ("in a header", whole[..1600].to_vec(), "middle of a block"),
        ("flipped header", flipped, "checksum is wrong"),
        (
            "after the end",
            [whole.clone(), b"more".to_vec()].concat(),
            "after the end",
        ),
        (
            "pax without entry",
            archive(&[pax(&[("path", b"a")])]),
            "without the entry",
        ),
        (
            "huge pax",
            archive(&[member(
                b"p",
                EntryType::XHeader,
                b"",
                &vec![b'x'; 1_048_577],
            )]),
            "extended header of 1048577",
        ),
        (
            "huge long name",
            archive(&[member(b"p", EntryType::GNULongName, b"", &vec![b'x'; 5000])]),
            "extended header of 5000",
        ),
        (
            "many pax headers",
            archive(&vec![pax(&[("SCHILY.xattr.user.x", &[b'x'; 65_000])]); 20]),
            "extended header of",
        ),
        (
            "many long names",
            archive(&vec![
                member(
                    b"p",
                    EntryType::GNULongName,
                    b"",
                    &[b'x'; 4000]
                );
                300
            ]),
            "extended header of 4000",
        ),
        (
            "many parts",
            archive(&[
                pax(&[
                    ("GNU.sparse.size", b"1"),
                    (
                        "GNU.sparse.map",
                        "0,0,".repeat(100_001).trim_end_matches(',').as_bytes(),
                    ),
                ]),
                file(b"s", b""),
            ]),
            "more than 100000 parts",
        ),
        (
            "global path",
            archive(&[member(b"g", EntryType::XGlobalHeader, b"", b"8 path=a\n")]),
            "pax record",
        ),
        (
            "global path, well formed",
            archive(&[member(b"g", EntryType::XGlobalHeader, b"", b"9 path=a\n")]),
            "global pax header",
        ),
        (
            "unknown type",
            archive(&[member(b"x", EntryType::new(b'M'), b"", b"")]),
            "type 'M' is not supported",
        ),
        (
            "owner",
            archive(&[member_with(b"x", EntryType::Regular, b"", b"", |h| {
                h.set_uid(u64::from(u32::MAX));
            })]),
            "32-bit id",
        ),
        (
            "size",
            archive(&[pax(&[("size", b"18446744073709551615")]), file(b"x", b"")]),
            "an entry of 18446744073709551615 bytes",
        ),
        (
            "old pax sparse",
            archive(&[pax(&[("GNU.sparse.map", b"0,1")]), file(b"x", b"y")]),
            "pax sparse format 0.0 is not supported",
        ),
        (
            "sparse map beyond the file",
            archive(&[
                pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"10"),
                ]),
                file(
                    b"x",
                    &[b"1\n5\n6\n".to_vec(), vec![0; 506], b"abcdef".to_vec()].concat(),
                ),
            ]),
            "contradicts itself",
        ),
    ];
    for (name, bytes, reason) in cases {
        let target = Target::new();
        let error = target.unpack(&bytes).unwrap_err();
        assert!(matches!(error, Error::Tar { .. }), "{name}: {error}");
        assert!(error.to_string().contains(reason), "{name}: {error}");
    }
    let target = Target::new();
    target.unpack(&whole).unwrap();
    // One zero block instead of two is common enough.
    target.unpack(&whole[..whole.len() - 512]).unwrap();
}

#[test]
fn names_on_the_console_are_harmless() {
    let target = Target::new();
    let error = target
        .unpack(&archive(&[file(b"/\x1b[2J\n", b"")]))
        .unwrap_err();
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn component() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"..".to_vec()),
        Just(b".".to_vec()),
        Just(Vec::new()),
        Just(b"l".to_vec()),
        Just(b"d".to_vec()),
        proptest::collection::vec(1_u8..=255, 1..6),
    ]
}

proptest! {
    #[test]
    fn a_cleaned_path_only_goes_down(parts in proptest::collection::vec(component(), 0..8)) {
        let name = parts.join(&b'/');
        if let Ok(path) = clean(&name) {
            let ok = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
            prop_assert!(ok, "{name:?} became {path:?}");
        }
    }

    #[test]
    fn whatever_the_members_are_they_stay_inside(
        members in proptest::collection::vec(
            (
                proptest::collection::vec(component(), 1..4),
                0_usize..4,
                proptest::collection::vec(component(), 1..5),
            ),
            1..12,
        )
    ) {
        let kinds = [
            EntryType::Regular,
            EntryType::Directory,
            EntryType::Symlink,
            EntryType::Link,
        ];
        let target = Target::new();
        // One after the other, so that a refused member does not hide those behind it.
        for (path, kind, link) in members {
            let kind = kinds[kind];
            let content: &[u8] = if kind == EntryType::Regular { b"x" } else { b"" };
            let bytes = member(&path.join(&b'/'), kind, &link.join(&b'/'), content);
            let _ = target.unpack(&archive(&[bytes]));
        }
        target.assert_outside_untouched();
    }

    #[test]
    fn any_bytes_unpack_or_fail(noise in proptest::collection::vec(any::<u8>(), 0..64), at in 0_usize..1500) {
        let mut bytes = archive(&[pax(&[("path", b"long")]), file(b"a", b"x")]);
        for (index, byte) in noise.iter().enumerate() {
            if let Some(place) = bytes.get_mut(at + index) {
                *place = *byte;
            }
        }
        let target = Target::new();
        let _ = target.unpack(&bytes);
        target.assert_outside_untouched();
    }
}
