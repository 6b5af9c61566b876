//! A good file becomes what it says; each bad one is refused with its line and a reason.

use std::path::Path;

use super::*;

const GOOD: &str = r#"[array]
name = "lab-1"
uuid = "00112233-4455-6677-8899-aabbccddeeff"
[registry]
directory = "registry"
[[pairs]]
id = 0
cache = "32MiB"
mirror = "8MiB"
[[directors]]
id = 1
pair = 0
matrix = "b.sock"
devices = ["shelf/disk0.port1.sock", "shelf/disk1.port1.sock"]
control = "127.0.0.1:7601"
[[directors]]
id = 0
pair = 0
matrix = "a.sock"
devices = ["shelf/disk0.port0.sock", "shelf/disk1.port0.sock"]
control = "127.0.0.1:7600"
nvme_tcp = "0.0.0.0:4420"
advertise = "192.0.2.7:4420"
[shelf]
directory = "shelf"
devices = 2
size = "64MiB"
files = true
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/dyad/dyad.toml"))
}

#[test]
fn a_good_file_becomes_what_it_says() {
    let config = parse(GOOD).expect("good");
    assert_eq!(config.array.to_string(), "lab-1");
    assert_eq!(config.uuid[..3], [0, 0x11, 0x22]);
    let ids: Vec<_> = config.directors.iter().map(|director| (director.id.0, director.role)).collect();
    assert_eq!(ids, [(0, DirectorId::A), (1, DirectorId::B)]);
    let a = config.director(DirectorNumber(0)).expect("there");
    assert_eq!(a.matrix, MatrixAddress::Socket("/etc/dyad/a.sock".into()));
    assert_eq!(a.devices[1], DeviceAddress::Socket("/etc/dyad/shelf/disk1.port0.sock".into()));
    assert_eq!(a.advertise, Some("192.0.2.7:4420".parse().expect("an address")));
    assert_eq!(config.partner(a).id, DirectorNumber(1));
    assert_eq!(config.pair(a).cache.to_string(), "32MiB");
    assert_eq!(config.pair(a).timing().lease, Duration::from_millis(600));
    assert_eq!(config.registry_of(PairNumber(3)), PairRegistry::Embedded("/etc/dyad/registry/pair3".into()));
    assert_ne!(config.uuid_of(PairNumber(1)), config.uuid_of(PairNumber(0)));
    assert!(config.shelf.is_some_and(|shelf| shelf.files && shelf.cache_blocks == 1024));
}

#[test]
fn the_example_is_good() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/example.toml");
    let config = Config::read(&path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((config.directors.len(), config.pairs[0].cache.to_string()), (2, "8GiB".to_owned()));
    assert!(matches!(config.registry, RegistryPlace::Etcd(endpoints) if endpoints.len() == 3));
    // What it says is the default is.
    let text = std::fs::read_to_string(&path)
        .expect("read")
        .replace("heartbeat_ms = 100\n", "")
        .replace("lease_ms = 600 ", "# ");
    assert_eq!(Config::parse(&text, &path).expect("good").pairs, config.pairs);
}

#[test]
fn etcd_keeps_the_records_of_pairs_apart() {
    let text = GOOD.replace("directory = \"registry\"", "etcd = [\"http://10.0.0.1:2379\", \"http://10.0.0.2:2379/\"]");
    let PairRegistry::Etcd { endpoints, array } = parse(&text).expect("good").registry_of(PairNumber(2)) else {
        panic!("it was etcd")
    };
    assert_eq!((endpoints.len(), array.as_str()), (2, "lab-1.pair2"));
}

/// What to replace, by what, the line of it, and a word of the reason.
const BAD: &[(&str, &str, usize, &str)] = &[
    ("name = \"lab-1\"", "name = lab", 2, "quoted"),
    ("name = \"lab-1\"", "name = \"Lab\"", 2, "lower-case"),
    ("name = \"lab-1\"", "name = 7", 2, "string"),
    ("name = \"lab-1\"", "nam = \"lab-1\"", 2, "unknown field `nam`"),
    ("eeff\"", "ee\"", 3, "32 hexadecimal"),
    ("directory = \"registry\"", "", 4, "either `directory`"),
    ("directory = \"registry\"", "directory = \"r\"\netcd = [\"http://h:1\"]", 4, "either `directory`"),
    ("directory = \"registry\"", "etcd = []", 5, "either `directory`"),
    ("directory = \"registry\"", "etcd = [\n\"http://h:1\",\n\"https://h:1\"]", 7, "TLS"),
    ("[registry]", "[registry]\n[control]\ntoken = \"short\"\n[registry2]", 7, "unknown field"),
    ("[[pairs]]", "[control]\ntoken = \"short\"\n[[pairs]]", 7, "16 printable"),
    ("cache = \"32MiB\"", "cache = \"32MB\"", 8, "KiB, MiB"),
    ("cache = \"32MiB\"", "cache = 32", 8, "string"),
    ("cache = \"32MiB\"", "cache = \"8MiB\"", 6, "16MiB of cache"),
    ("cache = \"32MiB\"", "cahce = \"32MiB\"", 8, "unknown field `cahce`"),
    ("cache = \"32MiB\"", "lease_ms = 300", 6, "four times"),
    ("[[pairs]]\nid = 0", "[[pairs]]\nid = 0\n[[pairs]]\nid = 0", 9, "pair 0 is there twice"),
    ("[[pairs]]\nid = 0", "[[pairs]]\nid = 7\n[[pairs]]\nid = 0", 7, "pair 7 has 0 directors"),
    ("id = 1\npair = 0", "id = 1\npair = 9", 12, "no pair 9"),
    ("id = 1\n", "id = 0\n", 17, "director 0 is there twice"),
    ("id = 1\n", "id = 300\n", 11, "u8"),
    ("id = 1\n", "", 10, "missing field `id`"),
    ("id = 1\n", "id = 1\nhost = \"\"\n", 12, "not empty"),
    ("id = 1\n", "id = 1\nhost = \"other\"\n", 4, "several hosts (localhost, other)"),
    ("matrix = \"b.sock\"", "matrix = \"a.sock\"", 13, "a.sock is used twice"),
    ("matrix = \"b.sock\"", "matrix = \"b\"", 13, "no end of a matrix"),
    ("matrix = \"b.sock\"", "matrix = \"0.0.0.0:7700\"", 13, "no end of a matrix"),
    ("matrix = \"b.sock\"", "matrix = \"127.0.0.1:7700\"", 19, "do not meet"),
    ("[[pairs]]", "[matrix]\nsecret = \"too-short-for-this\"\n[[pairs]]", 7, "32 printable"),
    ("127.0.0.1:7601", "127.0.0.1:7600", 15, "7600 is used twice"),
    ("127.0.0.1:7601", "0.0.0.0:7601", 15, "beyond loopback"),
    ("127.0.0.1:7601", "localhost", 15, "socket address"),
    ("id = 1\n", "id = 1\nnvme_tcp = \"0.0.0.0:4420\"\n", 12, "hosts cannot be sent to 0.0.0.0:4420"),
    ("id = 1\n", "id = 1\nadvertise = \"10.0.0.1:4420\"\n", 12, "which is not there"),
    ("id = 1\n", "id = 1\nnvme_tcp = \"127.0.0.1:7600\"\n", 12, "7600 is used twice"),
    (", \"shelf/disk1.port1.sock\"]", "]", 14, "2 to 16 devices"),
    (", \"shelf/disk1.port1.sock\"]", ", \"/dev/nvme0n1\"]", 14, "cannot be fenced"),
    (", \"shelf/disk1.port1.sock\"]", ", \"shelf/disk0.port1.sock\"]", 14, "used twice"),
    (", \"shelf/disk1.port1.sock\"]", ", \"shelf/disk1.port0.sock\"]", 14, "used twice"),
    (", \"shelf/disk1.port1.sock\"]", ", \"x.sock\", \"y.sock\"]", 20, "its partner has 3"),
    ("devices = 2\n", "devices = 65\n", 26, "1 to 64"),
    ("files = true", "files = \"yes\"", 28, "boolean"),
    ("files = true", "files = true\nfiles = true", 29, "duplicate"),
];

#[test]
fn bad_files_are_refused_with_line_and_reason() {
    for (good, bad, line, word) in BAD {
        assert!(GOOD.contains(good), "{good}");
        let error = parse(&GOOD.replacen(good, bad, 1)).expect_err(bad).to_string();
        assert!(error.starts_with(&format!("/etc/dyad/dyad.toml:{line}: ")) && error.contains(word), "{bad}: {error}");
    }
}

#[test]
fn partners_on_different_machines_reach_each_other_and_all_devices_or_are_refused() {
    let text = GOOD
        .replace("directory = \"registry\"", "etcd = [\"http://10.0.0.1:2379\"]")
        .replace("id = 1\n", "id = 1\nhost = \"other\"\n");
    let refused = |text: &str, word: &str| {
        let error = parse(text).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(&text, "that the other reaches");
    let text = text.replace("a.sock", "10.0.0.1:7700").replace("b.sock", "10.0.0.2:7700");
    refused(&text, "that the other reaches");
    let address = |n: usize| format!("shelf/disk{}.port{}.sock", n / 2, n % 2);
    let text = (0..4).fold(text, |text, n| text.replace(&address(n), &format!("0{n}:00.0")));
    refused(&text, "beyond loopback");
    let config = parse(&text.replace("[[pairs]]", "[matrix]\ntrusted_network = true\n[[pairs]]")).expect("good");
    assert_eq!(config.security, MatrixSecurity::TrustedNetwork);
    let secret = "0123456789abcdef0123456789abcdef";
    let config =
        parse(&text.replace("[[pairs]]", &format!("[matrix]\nsecret = \"{secret}\"\n[[pairs]]"))).expect("good");
    assert!(matches!(&config.security, MatrixSecurity::Secret(token) if token.as_str() == secret));
}

#[test]
fn beyond_loopback_a_token_will_do_and_is_not_printed() {
    let text = GOOD.replace("127.0.0.1:7601", "[::]:7601");
    let text = text.replace("[[pairs]]", "[control]\ntoken = \"0123456789abcdef\"\n[[pairs]]");
    let config = parse(&text).expect("good");
    assert!(!format!("{config:?}").contains("0123456789abcdef"));
    assert_eq!(config.token.expect("a token").as_str(), "0123456789abcdef");
}

#[test]
fn nothing_in_a_file_is_not_nothing_wrong() {
    for empty in ["", "[array]\nname = \"a\"\n", "\u{0}", "[[[["] {
        assert!(parse(empty).is_err(), "{empty}");
    }
    let none = "[array]\nname=\"a\"\nuuid=\"00112233445566778899aabbccddeeff\"\n[registry]\ndirectory=\"r\"\n";
    assert!(parse(none).expect_err("no pairs").to_string().contains("there is no [[pairs]]"));
    let missing = Config::read(Path::new("/nowhere/dyad.toml")).expect_err("no file").to_string();
    assert!(missing.contains("/nowhere/dyad.toml"), "{missing}");
}
