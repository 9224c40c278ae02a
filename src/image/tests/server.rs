//! A server that misbehaves as it is told to, on [::1].

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::net::TcpListener;

use super::*;
use crate::image::{ImageSource, Patience, Progress, VerifiedImage, install_patiently};

/// What the server does with one request for the image; the last plan counts for all later ones.
#[derive(Clone, Default)]
pub struct Plan {
    pub status: Option<u16>,
    /// Bytes sent before the connection breaks.
    pub cut: Option<usize>,
    /// Bytes sent before it falls silent.
    pub hang: Option<usize>,
    pub no_range: bool,
    pub etag: Option<&'static str>,
    pub weak: bool,
}

#[derive(Default)]
pub struct Site {
    pub files: HashMap<String, Vec<u8>>,
    pub statuses: HashMap<String, u16>,
    pub plans: Vec<Plan>,
    /// `Range` and `If-Range` of every request for the image.
    pub asked: Vec<(Option<String>, Option<String>)>,
}

pub type Shared = Arc<Mutex<Site>>;

async fn answer(State(site): State<Shared>, request: Request<Body>) -> Response<Body> {
    let mut site = site.lock().unwrap();
    let path = request.uri().path().to_owned();
    let status = |code: u16| {
        Response::builder()
            .status(code)
            .body(Body::empty())
            .unwrap()
    };
    if let Some(code) = site.statuses.get(&path) {
        return status(*code);
    }
    let Some(content) = site.files.get(&path).cloned() else {
        return status(404);
    };
    if !path.ends_with(".lz4") {
        return Response::new(Body::from(content));
    }
    let text = |headers: &HeaderMap, name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    let range = text(request.headers(), "range");
    let asked = (range.clone(), text(request.headers(), "if-range"));
    site.asked.push(asked);
    let index = (site.asked.len() - 1).min(site.plans.len().saturating_sub(1));
    let plan = site.plans.get(index).cloned().unwrap_or_default();
    if let Some(code) = plan.status {
        return status(code);
    }
    let total = content.len();
    let start = range
        .filter(|_| !plan.no_range)
        .map_or(0, |r| r[6..r.len() - 1].parse::<usize>().unwrap());
    let rest = content[start..].to_vec();
    let mut response = Response::builder().header("content-length", rest.len());
    response = match (plan.weak, plan.etag) {
        (true, _) => response.header("last-modified", "Sun, 22 Nov 2026 08:00:00 GMT"),
        (false, tag) => response.header("etag", tag.unwrap_or("\"one\"")),
    };
    if start > 0 {
        response = response.status(StatusCode::PARTIAL_CONTENT).header(
            "content-range",
            format!("bytes {start}-{}/{total}", total - 1),
        );
    }
    let until = plan.cut.or(plan.hang).unwrap_or(rest.len()).min(rest.len());
    let sent = futures_util::stream::iter([Ok(Bytes::copy_from_slice(&rest[..until]))]);
    let body = if plan.cut.is_some() {
        let cut = async {
            // The bytes before the cut have to leave first.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Err(std::io::Error::other("cut"))
        };
        Body::from_stream(sent.chain(futures_util::stream::once(cut)))
    } else if plan.hang.is_some() {
        Body::from_stream(sent.chain(futures_util::stream::pending()))
    } else {
        Body::from_stream(sent)
    };
    response.body(body).unwrap()
}

pub struct Server {
    pub site: Shared,
    pub source: ImageSource,
    pub target: Target,
}

pub const PATH: &str = "/images/img.tar.lz4";

impl Server {
    /// A site with `image` and its md5 file.
    pub async fn new(image: &[u8], plans: Vec<Plan>) -> Self {
        let md5 = format!("{}  img.tar.lz4\n", digest(Algorithm::Md5, image));
        let site = Shared::default();
        {
            let mut site = site.lock().unwrap();
            site.files.insert(PATH.into(), image.to_vec());
            site.files.insert(format!("{PATH}.md5"), md5.into_bytes());
            site.plans = plans;
        }
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&site));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            site,
            source: ImageSource::new(
                format!("http://{address}{PATH}?token=s3cret")
                    .parse()
                    .unwrap(),
            ),
            target: Target::new(),
        }
    }

    pub fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.site
            .lock()
            .unwrap()
            .files
            .insert(path.into(), content.into());
    }

    pub fn status(&self, path: &str, status: u16) {
        self.site
            .lock()
            .unwrap()
            .statuses
            .insert(path.into(), status);
    }

    pub fn ranges(&self) -> Vec<Option<String>> {
        let site = self.site.lock().unwrap();
        site.asked.iter().map(|(range, _)| range.clone()).collect()
    }

    pub async fn install(&self) -> Result<VerifiedImage, Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let patience = Patience {
            stall: Duration::from_millis(400),
            attempts: 3,
            breaks: 5,
            pause: Duration::from_millis(5),
            pause_max: Duration::from_millis(10),
        };
        let root = self.target.root();
        let last = Mutex::new(Progress::default());
        let progress = |now: Progress| *last.lock().unwrap() = now;
        let work = install_patiently(&client, &self.source, &root, &progress, &patience);
        let result = tokio::time::timeout(Duration::from_secs(20), work)
            .await
            .expect("the install hangs");
        match &result {
            Ok(image) => assert_eq!(image.summary().progress, *last.lock().unwrap()),
            Err(error) => assert!(!error.to_string().contains("s3cret"), "{error}"),
        }
        result
    }

    pub fn content_is_whole(&self) -> bool {
        std::fs::read(self.target.root().join("big")).unwrap() == noise()
    }
}

/// Content that lz4 cannot make small, so that positions in the stream mean something.
pub fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(200_000)
    .flatten()
    .collect()
}

pub fn image() -> Vec<u8> {
    lz4(&archive(&[
        file(b"big", &noise()),
        file(b"etc/hostname", b"x\n"),
    ]))
}

pub fn cut(at: usize) -> Plan {
    Plan {
        cut: Some(at),
        ..Plan::default()
    }
}
