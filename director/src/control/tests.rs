//! The control plane over real sockets, with a reactor that answers, does not answer, or stopped answering.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use dyad_backend::raid::GroupState;
use dyad_backend::raid::geometry::Level;
use dyad_backend::raid::group::MemberState;
use dyad_nvme::types::BlockCount;

use super::client::{Client, ClientError};
use super::snapshot::GroupSnapshot;
use super::*;
use crate::up::Plan;

fn snapshot() -> Snapshot {
    Snapshot {
        state: "both",
        serves: true,
        epoch: 7,
        settled: false,
        commands: 11,
        cache: dyad_cache::counters::CacheCounters { read_hits: 5, ..Default::default() },
        write_pending: 3,
        cached: 9,
        frames_free: 100,
        mirrored: 2,
        group: Some(GroupSnapshot {
            level: Level::Raid1,
            blocks: BlockCount(1000),
            state: GroupState::Degraded,
            members: vec![
                (dyad_backend::device::DeviceId([1; 16]), MemberState::Live),
                (dyad_backend::device::DeviceId([2; 16]), MemberState::Out),
            ],
            counters: dyad_backend::raid::group::GroupCounters::default(),
        }),
        ports: vec![PortNumbers { kind: "vi", address: "a.sock".into(), connections: 1, commands: 11, ended: 0 }],
        devices: Vec::new(),
    }
}

/// Answers so many questions, then none.
fn plane(answers: usize) -> Client {
    let text = Plan::new(2, "127.0.0.1:7600".parse().unwrap()).text([1; 16]);
    let config = Config::parse(&text, Path::new("dyad.toml")).unwrap();
    let listening = Listening::new("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listening.address();
    let mut reporter = listening.serve(&config, DirectorNumber(1), Arc::new(Counters::default())).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for _ in 0..answers {
                let Some(question) = reporter.questions().receive().await else { return };
                question.send(snapshot()).unwrap();
            }
            // It is there, and does not turn.
            std::future::pending::<()>().await;
        });
    });
    Client::new(&address.to_string(), None)
}

/// The first line of the answer to a request in plain text.
fn raw(client: &Client, method: &str, path: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(client.address()).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or("").to_owned()
}

#[test]
fn the_document_names_every_route_and_every_route_is_there() {
    let client = plane(usize::MAX);
    let document: serde_json::Value = client.get("/v1/openapi.json").unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with('3'), "{document}");
    let paths = document["paths"].as_object().unwrap();
    for known in ["/v1/status", "/v1/directors", "/v1/groups", "/v1/devices", "/v1/events", "/v1/ports", "/metrics"] {
        assert!(paths.contains_key(known), "{known}");
    }
    for (path, methods) in paths {
        // Volumes and the like stand in braces.
        let asked = path.replace(['{', '}'], "");
        for method in ["get", "put", "post", "delete", "patch"] {
            let answer = raw(&client, &method.to_uppercase(), &asked, "127.0.0.1");
            let refused = answer.contains(" 405 ");
            assert_eq!(!refused, methods.get(method).is_some(), "{method} {path}: {answer}");
        }
        for operation in methods.as_object().unwrap().values() {
            assert!(operation["responses"]["200"].is_object() || operation["responses"]["201"].is_object(), "{path}");
            assert!(
                operation["description"].is_string() || operation["summary"].is_string(),
                "{path} says what it is for"
            );
        }
    }
    assert!(raw(&client, "GET", "/v1/nothing", "127.0.0.1").contains(" 404 "));
    assert!(
        matches!(client.text("/v1/nothing"), Err(ClientError::Refused { status: 404, error }) if error.contains("openapi"))
    );
}

#[test]
fn what_the_reactor_says_is_shown() {
    let client = plane(usize::MAX);
    let status: view::Status = client.get("/v1/status").unwrap();
    assert_eq!((status.director, status.pair, &*status.state, status.serves, status.epoch), (1, 0, "both", true, 7));
    assert_eq!((status.cache["read_hits"], status.write_pending_blocks, status.responding), (5, 3, true));
    let group = status.group.unwrap();
    assert_eq!((&*group.level, &*group.state, &*group.members[1].state), ("RAID 1", "degraded", "out"));
    let directors: Vec<view::Director> = client.get("/v1/directors").unwrap();
    assert_eq!(
        directors.iter().map(|director| &*director.control).collect::<Vec<_>>(),
        ["127.0.0.1:7600", "127.0.0.1:7601"]
    );
    let events: Vec<Event> = client.get("/v1/events").unwrap();
    assert_eq!(events[0].what, "director 1 started");
}

#[test]
fn metrics_have_every_number_once_and_their_labels() {
    let text = plane(usize::MAX).text("/metrics").unwrap();
    assert!(text.ends_with("# EOF\n"));
    for line in [
        "dyad_serves{array=\"array\",director=\"1\",pair=\"0\"} 1",
        "dyad_cache_read_hits_total{array=\"array\",director=\"1\",pair=\"0\"} 5",
        "dyad_write_pending_blocks{array=\"array\",director=\"1\",pair=\"0\"} 3",
        "dyad_mirror_latency_seconds_count{array=\"array\",director=\"1\",pair=\"0\"} 0",
        "dyad_group_repaired_total{array=\"array\",director=\"1\",pair=\"0\"} 0",
    ] {
        assert!(text.lines().any(|said| said == line), "{line}\n{text}");
    }
    assert!(text.contains("state=\"degraded\"") && text.contains("le=\"+Inf\""), "{text}");
    let mut names: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "each metric is described once");
}

#[test]
fn a_reactor_that_does_not_answer_is_reported() {
    let never = plane(0);
    assert!(matches!(never.get::<view::Status>("/v1/status"), Err(ClientError::Refused { status: 503, .. })));
    let once = plane(1);
    assert!(once.get::<view::Status>("/v1/status").unwrap().responding);
    let last: view::Status = once.get("/v1/status").unwrap();
    assert!(!last.responding && last.epoch == 7);
    assert!(once.text("/metrics").unwrap().contains("dyad_responding{array=\"array\",director=\"1\",pair=\"0\"} 0"));
    // What needs no reactor is answered as ever.
    once.get::<Vec<Event>>("/v1/events").unwrap();
}

#[test]
fn garbage_costs_its_own_connection_only() {
    let client = plane(usize::MAX);
    for garbage in [&b"\0\0\0\0\r\n\r\n"[..], b"GET", b"GET / HTTP/9.9\r\n\r\n", &[0xff; 4096]] {
        let mut stream = TcpStream::connect(client.address()).unwrap();
        let _ = stream.write_all(garbage);
    }
    assert!(raw(&client, "GET", "/v1/status", "evil.example").contains(" 403 "));
    client.get::<view::Status>("/v1/status").unwrap();
}

/// Clients that connect and say nothing make room for those that ask, and take no more of the director's file descriptors than they may.
#[test]
fn silent_clients_make_room() {
    let client = plane(usize::MAX);
    let silent: Vec<_> =
        (0..listener::CONNECTIONS + 8).map(|_| TcpStream::connect(client.address()).unwrap()).collect();
    client.get::<view::Status>("/v1/status").unwrap();
    drop(silent);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Listening::new(address).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("configuration"), "{error}");
}
