//! An HTTP server that breaks where it is told to, on [::1]. By hand: a framework would not
//! hang up in the middle of a body at a given byte.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use url::Url;

use super::sha256;

/// One image.
#[derive(Clone)]
pub struct Served {
    pub content: Arc<Vec<u8>>,
    pub sha256: String,
    /// The first connection breaks after so many bytes of the body.
    pub cut: Option<usize>,
    pub ranges: bool,
    /// Bytes of bodies sent.
    pub sent: usize,
}

impl Served {
    pub fn new(content: Vec<u8>) -> Self {
        Self {
            sha256: sha256(&content),
            content: Arc::new(content),
            cut: None,
            ranges: true,
            sent: 0,
        }
    }
}

type Site = Arc<Mutex<HashMap<String, Served>>>;

pub struct Server {
    site: Site,
    port: u16,
}

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("[::1]:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let site = Site::default();
        let shared = Arc::clone(&site);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let site = Arc::clone(&shared);
                std::thread::spawn(move || serve(&stream, &site));
            }
        });
        Self { site, port }
    }

    pub fn url(&self, name: &str) -> Url {
        let text = format!("http://[::1]:{}/{name}", self.port);
        text.parse().expect("a URL")
    }

    pub fn put(&self, name: &str, served: Served) {
        self.site
            .lock()
            .expect("site")
            .insert(name.to_owned(), served);
    }

    pub fn sent(&self, name: &str) -> usize {
        self.site.lock().expect("site")[name].sent
    }
}

/// One request a connection: the client opens another when this one is closed.
fn serve(mut stream: &TcpStream, site: &Site) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        head.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let path = request
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .trim_start_matches('/');
    let mut reply = |head: &str, body: &[u8], length: usize| {
        let head =
            format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        // A client that has seen enough hangs up.
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body));
    };
    if let Some(name) = path.strip_suffix(".sha256") {
        let sum = site
            .lock()
            .expect("site")
            .get(name)
            .map(|served| served.sha256.clone());
        let body = format!("{}  {name}\n", sum.unwrap_or_default());
        return reply("200 OK", body.as_bytes(), body.len());
    }
    let (content, start, end) = {
        let mut site = site.lock().expect("site");
        let Some(served) = site.get_mut(path) else {
            return reply("404 Not Found", b"", 0);
        };
        let range = header("range").filter(|_| served.ranges);
        let start = range.map_or(0, |range| {
            assert_eq!(header("if-range").as_deref(), Some("\"one\""));
            range["bytes=".len()..range.len() - 1]
                .parse()
                .expect("a range")
        });
        let end = served.cut.take().unwrap_or(served.content.len());
        served.sent += end - start;
        (Arc::clone(&served.content), start, end)
    };
    let status = match start {
        0 => "200 OK\r\nETag: \"one\"".to_owned(),
        _ => format!(
            "206 Partial Content\r\nETag: \"one\"\r\nContent-Range: bytes {start}-{}/{}",
            content.len() - 1,
            content.len()
        ),
    };
    reply(&status, &content[start..end], content.len() - start);
}
