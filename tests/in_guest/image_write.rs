//! `metal-anvil image write URL DISK`, the medium's own program, on real disks.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Output};

use gptman::{GPT, GPTPartitionEntry};
use rtnetlink::LinkUnspec;
use sha2::{Digest, Sha256};

use crate::storage::{content, machine};

const MIB: usize = 1 << 20;
/// The image is so long; every disk of the guest is four times that.
const IMAGE: usize = 64 * MIB;
/// EFI system partition (UEFI 2.10, table 5.7).
const ESP: uuid::Uuid = uuid::uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");

/// A disk with one EFI system partition, which is full of text, with holes.
fn image() -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; IMAGE]);
    let mut gpt = GPT::new_from(&mut disk, 512, [7; 16]).unwrap();
    gpt[1] = GPTPartitionEntry {
        partition_type_guid: ESP.to_bytes_le(),
        unique_partition_guid: [9; 16],
        starting_lba: 2048,
        ending_lba: (IMAGE / 512 - 2048) as u64,
        attribute_bits: 0,
        partition_name: "efi".into(),
    };
    GPT::write_protective_mbr_into(&mut disk, 512).unwrap();
    gpt.write_into(&mut disk).unwrap();
    let mut bytes = disk.into_inner();
    for mib in (1..IMAGE / MIB - 1).step_by(3) {
        bytes[mib * MIB..][..MIB / 2].fill(mib as u8);
    }
    bytes
}

/// Serves files by their paths on the loopback interface and answers the base URL.
fn serve(files: HashMap<String, Vec<u8>>) -> String {
    // As the agent's own code does; nobody else brings it up in a guest.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let up = LinkUnspec::new_with_index(1).up().build();
        handle.link().set(up).execute().await.unwrap();
    });
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that has seen enough hangs up.
            let _ = answer(stream, &files);
        }
    });
    format!("http://[::1]:{port}")
}

fn answer(mut stream: TcpStream, files: &HashMap<String, Vec<u8>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let file = request.split(' ').nth(1).and_then(|path| files.get(path));
    let status = if file.is_some() {
        "200 OK"
    } else {
        "404 Not Found"
    };
    let body = file.map_or(&[][..], Vec::as_slice);
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    )?;
    stream.write_all(body)
}

fn write(url: &str, target: &str) -> Output {
    let mut command = Command::new("/init");
    command.args(["image", "write", "--quiet", url, target]);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

#[test]
fn a_disk_image_goes_to_a_whole_disk_and_nowhere_else() {
    let image = image();
    let sum: String = Sha256::digest(&image)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let wrong = sum.replace(|c: char| c.is_ascii_digit(), "a");
    let base = serve(HashMap::from([
        ("/good.raw.sha256".to_owned(), sum.into_bytes()),
        ("/good.raw".to_owned(), image.clone()),
        ("/bad.raw.sha256".to_owned(), wrong.into_bytes()),
        ("/bad.raw".to_owned(), image.clone()),
    ]));
    let (good, bad) = (format!("{base}/good.raw"), format!("{base}/bad.raw"));

    for disk in &machine(&["vda", "sda", "nvme0n1"]).erasable {
        let path = disk.path.to_str().unwrap();
        // What is there shows where nothing was written.
        fs::write(&disk.path, vec![0xee; disk.size as usize]).unwrap();
        let output = write(&bad, path);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("sha256"), "{}", said(&output));
        // The old table goes first, the image's comes last.
        let cleared = content(disk)[..MIB].iter().all(|byte| *byte == 0);
        assert!(cleared, "{path}: a damaged image got its partition table");

        let output = write(&good, path);
        assert!(output.status.success(), "{path}: {}", said(&output));
        let found = content(disk);
        let partition = MIB..IMAGE - 2 * MIB;
        assert!(found[partition.clone()] == image[partition], "{path}");
        let gpt = GPT::read_from(&mut Cursor::new(&found), 512).unwrap();
        assert_eq!(gpt.header.backup_lba, disk.size / 512 - 1, "{path}");
        assert_eq!(gpt[1].unique_partition_guid, [9; 16], "{path}");
        let backup = &found[disk.size as usize - 512..][..8];
        assert_eq!(backup, b"EFI PART", "{path}");
        let node = metal_anvil::storage::disks::partition_name(path, 1);
        assert!(fs::metadata(&node).is_ok(), "the kernel shows no {node}");

        // Neither a partition nor a disk that somebody uses.
        for (target, words) in [(&*node, "is no whole disk"), (path, "is in use by")] {
            let mut user = fs::OpenOptions::new();
            let user = user.read(true).custom_flags(libc::O_EXCL).open(&node);
            let output = write(&good, target);
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            assert!(said(&output).contains(words), "{}", said(&output));
            drop(user.unwrap());
        }
        let output = write(&format!("{base}/img.tar"), path);
        assert!(said(&output).contains("any other to a directory"));
        assert!(
            content(disk) == found,
            "{path}: a refused image was written"
        );
    }
}
