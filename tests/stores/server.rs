//! A web server on loopback that does as a test tells it.
#![allow(unreachable_pub, reason = "this is no library")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The bytes that are asked for of an object with so many.
    pub fn range(&self, len: usize) -> Option<Range<usize>> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some(match (first.parse::<usize>(), last.parse::<usize>()) {
            (Err(_), Ok(count)) => len.saturating_sub(count)..len,
            (Ok(first), Ok(last)) => first..(last + 1).min(len),
            _ => return None,
        })
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Ends after so many bytes of the body.
    pub cut: Option<usize>,
    /// Instead of an end, nothing more comes.
    pub stalls: bool,
    /// The body comes byte by byte, with pauses.
    pub drips: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// What a sound server answers of an object in one version.
    pub fn object(request: &Request, object: &[u8]) -> Self {
        let tagged = |reply: Self| reply.with("ETag", "\"one\"");
        let Some(range) = request.range(object.len()).filter(|range| !range.is_empty()) else {
            return tagged(if request.header("range").is_some() {
                Self::new(416, "")
            } else {
                Self::new(200, object)
            });
        };
        let said = format!("bytes {}-{}/{}", range.start, range.end - 1, object.len());
        tagged(Self::new(206, &object[range]).with("Content-Range", said))
    }
}

type Handler = dyn Fn(&Request, usize) -> Reply + Send + Sync;

pub struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// One that answers each request, and its number from 0 on, by `handler`.
    pub fn new(handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, stops) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, stop, handler): (_, _, Arc<Handler>) =
            (Arc::clone(&requests), Arc::clone(&stops), Arc::new(handler));
        let thread = thread::spawn(move || {
            for stream in listener.incoming().take_while(|_| !stop.load(Ordering::Acquire)) {
                let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
                thread::spawn(move || serve(stream.unwrap(), &seen, &*handler));
            }
        });
        Self { port, requests, stops, thread: Some(thread) }
    }

    /// One that has this object at every path.
    pub fn of(object: Vec<u8>) -> Self {
        Self::new(move |request, _| Reply::object(request, &object))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The ranges that were asked for.
    pub fn ranges(&self) -> Vec<String> {
        let range = |request: &Request| request.header("range").unwrap_or_default().to_owned();
        self.requests().iter().map(range).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Release);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        self.thread.take().map(JoinHandle::join);
    }
}

/// Answers the requests of a connection until one is cut off or the client leaves.
fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Request>>, handler: &Handler) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read(&mut reader) {
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(request.clone());
            seen.len() - 1
        };
        let reply = handler(&request, number);
        let mut lines = vec![format!("HTTP/1.1 {} Words\r\n", reply.status)];
        let length = ("Content-Length", reply.body.len().to_string());
        for (name, value) in reply.headers.iter().chain([&length]) {
            lines.push(format!("{name}: {value}\r\n"));
        }
        let body =
            if request.method == "HEAD" { &[] } else { &reply.body[..reply.cut.unwrap_or(reply.body.len())] };
        let step = if reply.drips { 1 } else { body.len().max(1) };
        let mut pieces = body.chunks(step);
        let mut sent = stream.write_all(format!("{}\r\n", lines.concat()).as_bytes());
        while let (true, Some(piece)) = (sent.is_ok(), pieces.next()) {
            sent = stream.write_all(piece);
            thread::sleep(Duration::from_millis(if reply.drips { 5 } else { 0 }));
        }
        if sent.is_err() {
            return;
        }
        if reply.stalls {
            let _ = stream.read(&mut [0]); // until the client gives up
        }
        if reply.stalls || reply.cut.is_some() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = reader.by_ref().lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ').map(ToOwned::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let headers = lines.take_while(|line| !line.is_empty());
    let headers = headers.filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_ascii_lowercase(), value.to_owned()))
    });
    let headers: BTreeMap<_, _> = headers.collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |bytes| bytes.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, target, headers, body })
}
