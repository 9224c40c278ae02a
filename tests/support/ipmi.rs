//! BMCs beside a guest: OpenIPMI's `ipmi_sim`, and the QEMU devices through which a guest sees one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::netns::Netns;
use super::process::{Process, run};

/// Where the BMC's LAN port is: an address of the namespace.
pub const BMC_ADDRESS: &str = "192.0.2.1";
/// Its MAC.
pub const BMC_MAC: &str = "3c:ec:ef:01:02:03";
/// The maker's administrator, number 2.
pub const FACTORY: (&str, &str) = ("ADMIN", "factory-s3cret");
/// TCP port in the namespace on which QEMU's `ipmi-bmc-extern` finds its BMC.
const VM_PORT: u16 = 9002;

/// What stands in the FRU inventory, in the API's names.
pub const FRU: [(&str, &str); 8] = [
    ("chassisPartNumber", "CSE-829HQ"),
    ("chassisPartSerial", "C8290FA29N30051"),
    ("boardMfg", "Supermicro"),
    ("boardMfgSerial", "VM194S006170"),
    ("boardPartNumber", "X11DPT-B"),
    ("productManufacturer", "Supermicro"),
    ("productPartNumber", "SYS-2029BT-HNR"),
    ("productSerial", "A261748X9B17364"),
];

/// An FRU inventory with three areas, as the makers write it: a 6-bit field, a custom one, and
/// a multi-record area that makes no sense.
pub fn fru() -> Vec<u8> {
    let [cpn, cs, bm, bs, bp, pm, pp, ps] = FRU.map(|(_, value)| value);
    let eight = |text: &str| [&[0xc0 | text.len() as u8], text.as_bytes()].concat();
    let chassis = area(&[1, 0, 0x17], &[eight(cpn), eight(cs), eight("custom")]);
    let board = area(
        &[1, 0, 25, 0x10, 0x20, 0xc0],
        &[eight(bm), eight("X11"), six_bit(bs), eight(bp)],
    );
    let product = area(
        &[1, 0, 0],
        &[eight(pm), eight("name"), eight(pp), eight("01"), eight(ps)],
    );
    let mut header = vec![1, 0, 1, 0, 0, 0, 0];
    header[3] = header[2] + (chassis.len() / 8) as u8;
    header[4] = header[3] + (board.len() / 8) as u8;
    header[5] = header[4] + (product.len() / 8) as u8;
    header.push(complement(&header));
    [header, chassis, board, product, vec![0xee; 64]].concat()
}

fn complement(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn area(start: &[u8], fields: &[Vec<u8>]) -> Vec<u8> {
    let mut area = [start, &fields.concat(), &[0xc1]].concat();
    area.resize((area.len() + 1).next_multiple_of(8) - 1, 0);
    area[1] = ((area.len() + 1) / 8) as u8;
    area.push(complement(&area));
    area
}

/// Packed 6-bit ASCII: four characters in three bytes.
fn six_bit(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 4, 0, "whole groups of characters");
    let packed: Vec<u8> = text
        .as_bytes()
        .chunks(4)
        .flat_map(|group| {
            let bits = group
                .iter()
                .rev()
                .fold(0_u32, |bits, c| bits << 6 | u32::from(c - b' '));
            bits.to_le_bytes()[..3].to_vec()
        })
        .collect();
    [vec![0x80 | packed.len() as u8], packed].concat()
}

/// QEMU arguments for a BMC outside of QEMU, on a KCS interface. `socket` is the chardev's
/// address. QEMU 7.2 crashes when it is connected before the interface exists; with
/// `reconnect` it connects later.
pub fn extern_at(socket: &str) -> Vec<String> {
    devices(&format!(
        "-chardev socket,id=ipmi,{socket},reconnect=1 \
         -device ipmi-bmc-extern,id=bmc0,chardev=ipmi -device isa-ipmi-kcs,bmc=bmc0"
    ))
}

/// QEMU arguments for the BMC of [`ipmi_sim`].
pub fn external() -> Vec<String> {
    extern_at(&format!("host=127.0.0.1,port={VM_PORT}"))
}

/// QEMU arguments for QEMU's own BMC, which knows no users and no LAN.
pub fn internal(fru: &Path) -> Vec<String> {
    devices(&format!(
        "-device ipmi-bmc-sim,id=bmc0,frudatafile={} -device isa-ipmi-kcs,bmc=bmc0",
        fru.display()
    ))
}

fn devices(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Starts `ipmi_sim` with the inventory of [`fru`], a LAN port and the maker's administrator.
pub fn ipmi_sim(ns: &Netns, dir: &Path) -> Process {
    ns.ip(&format!("address add {BMC_ADDRESS}/32 dev lo"));
    let write = |name: &str, text: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        path
    };
    let inventory = fru();
    let file = write("fru.bin", &inventory);
    // ipmi_sim asks this program for the LAN parameters.
    let program = write(
        "lan-config",
        format!(
            "#!/bin/sh\ncat <<END\nip_addr_src: static\nip_addr: {BMC_ADDRESS}\nmac_addr: {BMC_MAC}\n\
             subnet_mask: 255.255.255.0\ndefault_gw_ip_addr: 192.0.2.254\n\
             default_gw_mac_addr: 02:00:00:00:00:98\nbackup_gw_ip_addr: 0.0.0.0\n\
             backup_gw_mac_addr: 00:00:00:00:00:00\nEND\n"
        )
        .as_bytes(),
    );
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("program's mode");
    let (name, password) = FACTORY;
    let auths = "none md2 md5 straight";
    let config = write(
        "ipmi-lan.conf",
        format!(
            "name \"bmcsim\"\nset_working_mc 0x20\nstartlan 1\n  addr {BMC_ADDRESS} 623\n  \
             priv_limit admin\n  allowed_auths_callback {auths}\n  allowed_auths_user {auths}\n  \
             allowed_auths_operator {auths}\n  allowed_auths_admin {auths}\n  \
             guid a123456789abcdefa123456789abcdef\n  lan_config_program \"{}\"\nendlan\n\
             serial 15 127.0.0.1 {VM_PORT} codec VM ipmb 0x20\n\
             user 1 true \"\" \"{password}\" user 10 {auths}\n\
             user 2 true \"{name}\" \"{password}\" admin 10 {auths}\n",
            program.display()
        )
        .as_bytes(),
    );
    let emulation = write(
        "ipmi.emu",
        format!(
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\n\
             sel_enable 0x20 1000 0x0a\nmc_add_fru_data 0x20 0 {} file 0 \"{}\"\nmc_enable 0x20\n",
            inventory.len(),
            file.display()
        )
        .as_bytes(),
    );
    let state = dir.join("ipmi-state");
    fs::create_dir_all(&state).expect("directory for ipmi_sim");
    let mut command = ns.command("ipmi_sim");
    // -n: no console on stdin, which would end it.
    command
        .arg("-n")
        .arg("-c")
        .arg(config)
        .arg("-f")
        .arg(emulation);
    command.arg("-s").arg(state);
    let mut process = Process::start("ipmi_sim", command, dir);
    process.wait_until("listening", Duration::from_secs(20), || {
        listening(ns, VM_PORT)
    });
    process
}

/// Does something listen on this TCP port?
pub fn listening(ns: &Netns, port: u16) -> bool {
    let filter = format!("sport = :{port}");
    !run(ns.command("ss").args(["-H", "-l", "-t", "-n", &filter]))
        .trim()
        .is_empty()
}

/// Runs `ipmitool -I lanplus` against `address` (`host:port`) as the control plane would;
/// `None` when the BMC does not let the user in. The password travels by the environment.
pub fn ipmitool(
    ns: &Netns,
    address: &str,
    user: &str,
    password: &str,
    arguments: &[&str],
) -> Option<String> {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let mut command = ns.command("ipmitool");
    // Cipher suite 3 is every BMC's; asking which there are costs ten seconds here.
    command.args(["-I", "lanplus", "-C", "3", "-R", "2", "-N", "2", "-E"]);
    command.args(["-H", host.trim_matches(['[', ']']), "-p", port, "-U", user]);
    command.args(["-L", "ADMINISTRATOR"]).args(arguments);
    let output = quiet(&mut command)
        .env("IPMITOOL_PASSWORD", password)
        .output()
        .unwrap_or_else(|e| panic!("run ipmitool (package ipmitool): {e}"));
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null())
}
