//! Who gets a token, and what else the answer says.

use std::fs;
use std::io::Write;
use std::time::Duration;

use serde_json::json;

use crate::bed::{
    Helper, address, apiserver_url, body_json, get, header, machine, read_until, run_boot, standin,
    status, wait,
};

#[test]
fn a_machine_gets_a_token_for_itself_and_no_other_machine() {
    let helper = Helper::start(&["--proxy-apiserver"]);
    let (own, other) = (machine(), machine());
    let token = helper.token(&own);
    assert!(token.starts_with("machine-secret-"));
    let good = helper.call("SuperUserPassword", &token, &json!({"uuid": own}));
    assert_eq!(status(&good), 200, "{good}");
    let event = json!({"time": "2026-11-22T00:00:00Z", "message": "m",
        "event": "MACHINE_PROVISIONING_EVENT_TYPE_PREPARING"});
    for (method, more) in [
        ("SuperUserPassword", json!({})),
        ("SendEvent", json!({"event": event})),
        (
            "InstallationSucceeded",
            json!({"consolePassword": "secret"}),
        ),
        (
            "Register",
            json!({"partition": "test-part", "metalHammerVersion": "v0", "hardware": {"memory": "1"}}),
        ),
    ] {
        let mut request = more;
        request["uuid"] = other.as_str().into();
        let wrong = helper.call(method, &token, &request);
        assert_eq!(status(&wrong), 403, "{method}: {wrong}");
        assert_eq!(body_json(&wrong)["code"], "permission_denied", "{method}");
    }
    // A stream's refusal is in its last message.
    let mut stream = helper.connect();
    stream.write_all(&wait(&token, &other)).expect("request");
    read_until(&mut stream, "permission_denied");
}

#[test]
fn asking_for_a_configuration_is_no_dhcp_event() {
    let helper = Helper::start(&[]);
    let machine = machine();
    helper.token(&machine);
    let record = standin().record();
    let of = |method: &str| {
        let lines = record
            .iter()
            .filter(|line| line["uuid"] == machine.as_str());
        lines.filter(|line| line["method"] == method).count()
    };
    assert_eq!((of("MachineToken"), of("Dhcp")), (1, 0));
}

#[test]
fn a_ticket_is_needed_and_can_be_replaced_at_any_time() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("tickets");
    fs::write(&file, "first-t1cket\nsecond-t1cket\n").expect("tickets");
    let helper = Helper::start(&["--ticket-file", &file.display().to_string()]);
    let path = format!("/config/{}", machine());
    let with = |ticket: &str| {
        let answer = helper.get_with(&path, &format!("authorization: Bearer {ticket}\r\n"));
        status(&answer)
    };
    let answer = helper.get(&path);
    assert_eq!(status(&answer), 401, "{answer}");
    assert_eq!(header(&answer, "www-authenticate"), Some("Bearer"));
    assert_eq!(with("first-t1cke"), 401);
    assert_eq!(with("first-t1cket"), 200);
    assert_eq!(with("second-t1cket"), 200);
    fs::write(&file, "third-t1cket").expect("tickets");
    assert_eq!(with("first-t1cket"), 401);
    assert_eq!(with("third-t1cket"), 200);
    fs::remove_file(&file).expect("own file");
    assert_eq!(
        with("third-t1cket"),
        500,
        "no tickets is not: no ticket needed"
    );
    assert!(!helper.log().contains("t1cket"), "a ticket was logged");
}

#[test]
fn only_prefixes_that_are_allowed_get_anything_but_health() {
    let (inside, outside) = (address(), address());
    let prefix = format!("{inside}/128");
    let helper = Helper::start(&["--allow", &prefix, "--proxy-apiserver"]);
    let path = format!("/config/{}", machine());
    let ask = |from, path: &str| status(&helper.ask_from(from, &get(path, "")));
    assert_eq!(ask(&inside, &path), 200);
    for path in [
        path.as_str(),
        "/boot.ipxe",
        "/static/vmlinuz",
        "/image/a",
        "/metalstack.infra.v2.BootService/SendEvent",
        "/",
    ] {
        assert_eq!(ask(&outside, path), 403, "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ask(&outside, path), 200, "{path}");
    }
    assert_eq!(ask(&inside, "//metrics"), 404);
    assert_eq!(ask(&outside, "//metrics"), 403, "no way round");
}

#[test]
fn an_address_that_asks_too_often_waits_and_others_do_not() {
    let helper = Helper::start(&["--rate-per-address", "2", "--rate-per-network", "4"]);
    let (greedy, far) = (address(), address());
    let near = std::net::Ipv6Addr::from_bits(greedy.to_bits() + 1);
    let ask = |from| helper.config_from(from, &machine());
    assert_eq!(status(&ask(&greedy)), 200);
    assert_eq!(status(&ask(&greedy)), 200);
    let refused = ask(&greedy);
    assert_eq!(status(&refused), 429, "{refused}");
    let pause: u64 = header(&refused, "retry-after")
        .and_then(|s| s.parse().ok())
        .expect("pause");
    assert!((1..=31).contains(&pause), "{pause}");
    assert_eq!(status(&ask(&near)), 200);
    assert_eq!(status(&ask(&near)), 200);
    let next = std::net::Ipv6Addr::from_bits(greedy.to_bits() + 2);
    assert_eq!(status(&ask(&next)), 429, "the /64 has had its share");
    assert_eq!(status(&ask(&far)), 200);
    assert_eq!(
        helper.metric("metal_boot_refused_total{reason=\"rate\"}"),
        2
    );
}

#[test]
fn a_uuid_belongs_to_its_first_source_where_that_is_enforced() {
    let helper = Helper::start(&["--bind", "enforce"]);
    let (first, second, machine) = (address(), address(), machine());
    assert_eq!(status(&helper.config_from(&first, &machine)), 200);
    let refused = helper.config_from(&second, &machine);
    assert_eq!(status(&refused), 403, "{refused}");
    assert!(!refused.contains("machine-secret"), "{refused}");
    assert_eq!(status(&helper.config_from(&first, &machine)), 200);

    let helper = Helper::start(&[]);
    assert_eq!(status(&helper.config_from(&first, &machine)), 200);
    assert_eq!(status(&helper.config_from(&second, &machine)), 200);
    let warning = format!("this machine's UUID belongs to {first}");
    let network = warning.rsplit_once(':').expect("address").0.to_owned();
    assert!(
        helper.log().contains(&network),
        "{network} is not in the log"
    );
}

#[test]
fn flags_are_stronger_than_the_environment_and_that_than_the_file() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("metal-boot.toml");
    let text = "partition = 'from-file'\nntp_servers = ['2001:db8::5']\ndebug = true\n\
                policy = { wait_hours = 3 }\n";
    fs::write(&file, text).expect("file");
    let file = file.display().to_string();
    let said = |arguments: &[&str], variables: &[(&str, &str)]| {
        let (url, token) = (
            apiserver_url(),
            dir.path().join("none").display().to_string(),
        );
        let base = [
            "check",
            "--config",
            &file,
            "--apiserver-url",
            &url,
            "--token-file",
            &token,
        ];
        let arguments: Vec<&str> = base.iter().chain(arguments).copied().collect();
        let output = run_boot(&arguments, variables);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let environment = ("METAL_BOOT_PARTITION", "from-environment");
    assert!(said(&[], &[]).contains("partition from-file"));
    assert!(said(&[], &[environment]).contains("partition from-environment"));
    let flag = ["--partition", "from-flag"];
    assert!(said(&flag, &[environment]).contains("partition from-flag"));

    // What only the file says reaches the machine.
    let helper = Helper::start(&["--config", &file]);
    let answer = body_json(&helper.get(&format!("/config/{}", machine())));
    assert_eq!(answer["ntp_servers"], json!(["2001:db8::5"]));
    assert_eq!(answer["policy"], json!({"wait_hours": 3}));
    assert_eq!(answer["debug"], true);
    assert_eq!(answer["partition"], crate::bed::PARTITION);
}

#[test]
fn an_apiserver_that_is_down_is_said_with_a_wish_to_come_again() {
    let helper = Helper::before("http://[2001:db8:ffff::1]:9", &[]);
    let begin = std::time::Instant::now();
    let answer = helper.get(&format!("/config/{}", machine()));
    assert_eq!(status(&answer), 503, "{answer}");
    assert_eq!(header(&answer, "retry-after"), Some("5"));
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "{:?}",
        begin.elapsed()
    );
    let ready = helper.get("/readyz");
    assert_eq!(status(&ready), 503, "{ready}");
    assert_eq!(status(&helper.get("/healthz")), 200);
}

#[test]
fn boot_ipxe_asks_back_and_then_loads_what_the_apiserver_says() {
    let helper = Helper::start(&[]);
    let asks_back = helper.get("/boot.ipxe");
    assert_eq!(status(&asks_back), 200);
    assert!(asks_back.contains("\r\n\r\n#!ipxe\n"), "{asks_back}");
    assert!(asks_back.contains("chain --replace boot.ipxe?uuid=${uuid}&mac=${mac}\n"));

    let machine = machine();
    let query = format!("uuid={machine}&mac=52:54:00:00:00:01");
    let host = "x-more: 1\r\n";
    let answer = helper.get_with(
        &format!("/{}/boot.ipxe?{query}", crate::bed::PARTITION),
        host,
    );
    assert_eq!(status(&answer), 200, "{answer}");
    for line in [
        "kernel --name kernel http://standin.invalid/vmlinuz initrd=initrd0 PIXIE_API_URL=http://h init_on_free=1 || goto failed\n",
        "initrd --name initrd0 http://standin.invalid/initrd.img || goto failed\n",
        "boot || goto failed\n",
    ] {
        assert!(answer.contains(line), "{line:?} is not in {answer}");
    }
    let record = standin().record();
    let dhcp =
        |line: &&serde_json::Value| line["method"] == "Dhcp" && line["uuid"] == machine.as_str();
    assert_eq!(record.iter().filter(dhcp).count(), 1);
    for wrong in [
        "/boot.ipxe?uuid=x&mac=y",
        "/boot.ipxe?mac=52:54:00:00:00:01",
        "/a%2fb/boot.ipxe",
    ] {
        assert_eq!(status(&helper.get(wrong)), 400, "{wrong}");
    }
}
