//! Images that must never be booted.

use crate::common::crash_of_image;
use crate::support::images::{Edit, Image, tiny_with};

#[test]
fn a_flipped_byte() {
    // Near the end: everything before it has been unpacked already.
    crash_of_image(
        "image_flipped_byte",
        &Image::built("tiny").with_flipped_byte(9000),
        &["image: ", "img.tar.lz4"],
    );
}

#[test]
fn the_md5_of_another_image() {
    crash_of_image(
        "image_wrong_md5",
        &Image::built("tiny").with_md5_of(b"another image"),
        &["image: ", "md5"],
    );
}

#[test]
fn an_image_that_the_server_does_not_have() {
    crash_of_image("image_404", &Image::missing(), &["404"]);
}

#[test]
fn an_image_that_is_an_error_page() {
    crash_of_image(
        "image_error_page",
        &Image::of(b"<html>this is a login page</html>\n".repeat(1000)),
        &["not an image"],
    );
}

#[test]
fn an_image_with_a_name_above_the_root() {
    crash_of_image(
        "image_dotdot",
        &tiny_with(&[Edit::File("../evil", b"evil")]),
        &["image: ", "../evil"],
    );
}

#[test]
fn an_image_that_writes_through_a_link_out_of_the_root() {
    crash_of_image(
        "image_symlink",
        &tiny_with(&[
            Edit::Symlink("./out", "/run"),
            Edit::File("./out/evil", b"evil"),
        ]),
        &["image: ", "out"],
    );
}
