//! The requests and answers of etcd's gateway as JSON (etcd's `rpc.proto` as protobuf's JSON mapping has it: 64-bit numbers are strings, bytes are base64,
//! fields that are zero or empty are absent).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::registry::{Cas, Revision, VALUE_BYTES_MAX, Versioned};

/// Reads the value of a key.
pub(super) const RANGE: &str = "/v3/kv/range";
/// Changes a key, or reads it if it is not as expected.
pub(super) const TXN: &str = "/v3/kv/txn";

/// Longest answer: a value in base64 and what is around it.
pub(super) const ANSWER_BYTES_MAX: usize = VALUE_BYTES_MAX.div_ceil(3) * 4 + 4096;

#[derive(Serialize)]
struct RangeRequest<'a> {
    key: &'a str,
}

#[derive(Serialize)]
struct TxnRequest<'a> {
    compare: [Compare<'a>; 1],
    success: [PutOp<'a>; 1],
    failure: [RangeOp<'a>; 1],
}

#[derive(Serialize)]
struct Compare<'a> {
    key: &'a str,
    target: &'static str,
    result: &'static str,
    mod_revision: String,
}

#[derive(Serialize)]
struct PutOp<'a> {
    request_put: Put<'a>,
}

#[derive(Serialize)]
struct Put<'a> {
    key: &'a str,
    value: &'a str,
}

#[derive(Serialize)]
struct RangeOp<'a> {
    request_range: RangeRequest<'a>,
}

/// Asks for the value of a key.
pub(super) fn range_request(key: &str) -> Vec<u8> {
    json(&RangeRequest { key: &STANDARD.encode(key) })
}

/// Gives a key a value if it was last changed by `expected`; a key that has no value was last changed by revision 0.
pub(super) fn txn_request(key: &str, expected: Option<Revision>, value: &[u8]) -> Vec<u8> {
    let (key, value) = (&*STANDARD.encode(key), &*STANDARD.encode(value));
    let mod_revision = expected.map_or(0, Revision::number).to_string();
    json(&TxnRequest {
        compare: [Compare { key, target: "MOD", result: "EQUAL", mod_revision }],
        success: [PutOp { request_put: Put { key, value } }],
        failure: [RangeOp { request_range: RangeRequest { key } }],
    })
}

fn json(request: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(request).expect("strings only")
}

#[derive(Deserialize)]
struct Header {
    #[serde(deserialize_with = "number")]
    cluster_id: u64,
    #[serde(deserialize_with = "number")]
    revision: u64,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(deserialize_with = "number")]
    mod_revision: u64,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct RangeAnswer {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct RangeResponse {
    header: Header,
    #[serde(flatten)]
    answer: RangeAnswer,
}

#[derive(Deserialize)]
struct TxnResponse {
    header: Header,
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<ResponseOp>,
}

#[derive(Deserialize)]
struct ResponseOp {
    response_range: Option<RangeAnswer>,
}

/// Which cluster answered, and what.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer<T> {
    pub(super) cluster: u64,
    pub(super) outcome: T,
}

/// The answer to [`range_request`]; `None` if it is not one.
pub(super) fn range_answer(key: &str, bytes: &[u8]) -> Option<Answer<Option<Versioned>>> {
    let response: RangeResponse = serde_json::from_slice(bytes).ok()?;
    Some(Answer { cluster: response.header.cluster_id, outcome: value_of(key, response.answer)? })
}

/// The answer to [`txn_request`]; `None` if it is not one.
pub(super) fn txn_answer(key: &str, bytes: &[u8]) -> Option<Answer<Cas>> {
    let response: TxnResponse = serde_json::from_slice(bytes).ok()?;
    let outcome = if response.succeeded {
        // The transaction's revision is that of the one key that it changed.
        Cas::Won(Revision::new(response.header.revision)?)
    } else {
        let [ResponseOp { response_range: Some(range) }] = <[_; 1]>::try_from(response.responses).ok()? else {
            return None;
        };
        Cas::Lost(value_of(key, range)?)
    };
    Some(Answer { cluster: response.header.cluster_id, outcome })
}

/// Outer `None`: nonsense.
#[expect(clippy::option_option, reason = "no value is an ordinary answer")]
fn value_of(key: &str, answer: RangeAnswer) -> Option<Option<Versioned>> {
    let Some(found) = answer.kvs.into_iter().next() else { return Some(None) };
    let value = STANDARD.decode(found.value).ok().filter(|value| value.len() <= VALUE_BYTES_MAX)?;
    let ours = STANDARD.decode(found.key).is_ok_and(|found| found == key.as_bytes());
    ours.then_some(Some(Versioned { revision: Revision::new(found.mod_revision)?, value }))
}

/// Why a member refused.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The cluster's storage is full.
    Full,
    /// It has too much to do.
    Busy,
    /// It wants to know who asks.
    Denied,
    /// Nothing certain: no leader, a time-out, an election, or not an etcd at all.
    Uncertain,
}

#[derive(Deserialize)]
struct ErrorResponse {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    message: String,
    #[serde(default)]
    error: String,
}

/// What a status other than 200 means: gRPC's codes (`codes.go`) and the texts of etcd's `rpctypes/error.go`.
pub(super) fn refusal(bytes: &[u8]) -> Refusal {
    const PERMISSION_DENIED: u32 = 7;
    const RESOURCE_EXHAUSTED: u32 = 8;
    const UNAUTHENTICATED: u32 = 16;
    let Ok(response) = serde_json::from_slice::<ErrorResponse>(bytes) else { return Refusal::Uncertain };
    let says = |text| response.message.contains(text) || response.error.contains(text);
    match response.code {
        RESOURCE_EXHAUSTED if says("database space exceeded") => Refusal::Full,
        RESOURCE_EXHAUSTED if says("too many requests") => Refusal::Busy,
        PERMISSION_DENIED | UNAUTHENTICATED => Refusal::Denied,
        _ => Refusal::Uncertain,
    }
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#""header":{"cluster_id":"9","member_id":"1","revision":"12","raft_term":"3"}"#;

    fn range(rest: &str) -> Option<Answer<Option<Versioned>>> {
        range_answer("foo", format!("{{{HEADER}{rest}}}").as_bytes())
    }

    fn versioned(revision: u64, value: &[u8]) -> Versioned {
        Versioned { revision: Revision::new(revision).expect("not zero"), value: value.to_vec() }
    }

    #[test]
    fn values_are_read() {
        let found = r#","kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"7","version":"3","value":"YmFy"}],"count":"1""#;
        assert_eq!(range(found), Some(Answer { cluster: 9, outcome: Some(versioned(7, b"bar")) }));
        let empty = r#","kvs":[{"key":"Zm9v","mod_revision":"7"}],"count":"1""#;
        assert_eq!(range(empty), Some(Answer { cluster: 9, outcome: Some(versioned(7, b"")) }));
        assert_eq!(range(""), Some(Answer { cluster: 9, outcome: None }));
    }

    #[test]
    fn changes_are_won_or_lost() {
        let txn = |rest: &str| txn_answer("foo", format!("{{{HEADER}{rest}}}").as_bytes()).map(|answer| answer.outcome);
        let won = txn(r#","succeeded":true,"responses":[{"response_put":{"header":{"revision":"12"}}}]"#);
        assert_eq!(won, Some(Cas::Won(Revision::new(12).expect("not zero"))));
        let lost =
            txn(r#","responses":[{"response_range":{"kvs":[{"key":"Zm9v","mod_revision":"7","value":"YmFy"}]}}]"#);
        assert_eq!(lost, Some(Cas::Lost(Some(versioned(7, b"bar")))));
        assert_eq!(txn(r#","responses":[{"response_range":{}}]"#), Some(Cas::Lost(None)));
        // Neither won nor what is there instead.
        assert_eq!(txn(""), None);
        assert_eq!(txn(r#","responses":[{}]"#), None);
    }

    #[test]
    fn nonsense_is_no_answer() {
        for nonsense in [
            r#","kvs":[{"key":"Zm9v","mod_revision":"0","value":"YmFy"}]"#,
            r#","kvs":[{"key":"YmFy","mod_revision":"7","value":"YmFy"}]"#,
            r#","kvs":[{"key":"Zm9v","mod_revision":"-7","value":"YmFy"}]"#,
            r#","kvs":[{"key":"Zm9v","mod_revision":"7","value":"?"}]"#,
            r#","kvs":7"#,
        ] {
            assert_eq!(range(nonsense), None, "{nonsense}");
        }
        for bytes in [&b""[..], b"{}", b"[]", b"<html>", br#"{"header":{}}"#] {
            assert_eq!(range_answer("foo", bytes), None);
            assert_eq!(txn_answer("foo", bytes), None);
        }
        let long = STANDARD.encode(vec![0; VALUE_BYTES_MAX + 1]);
        assert_eq!(range(&format!(r#","kvs":[{{"key":"Zm9v","mod_revision":"7","value":"{long}"}}]"#)), None);
    }

    #[test]
    fn requests_are_as_the_gateway_wants_them() {
        assert_eq!(range_request("foo"), br#"{"key":"Zm9v"}"#);
        let txn = concat!(
            r#"{"compare":[{"key":"Zm9v","target":"MOD","result":"EQUAL","mod_revision":"0"}],"#,
            r#""success":[{"request_put":{"key":"Zm9v","value":"YmFy"}}],"failure":[{"request_range":{"key":"Zm9v"}}]}"#,
        );
        assert_eq!(txn_request("foo", None, b"bar"), txn.as_bytes());
    }

    #[test]
    fn refusals_are_told_apart() {
        let refused =
            |code, message| refusal(format!(r#"{{"code":{code},"message":"etcdserver: {message}"}}"#).as_bytes());
        assert_eq!(refused(8, "mvcc: database space exceeded"), Refusal::Full);
        assert_eq!(refused(8, "too many requests"), Refusal::Busy);
        assert_eq!(refused(16, "invalid auth token"), Refusal::Denied);
        assert_eq!(refused(14, "leader changed"), Refusal::Uncertain);
        assert_eq!(refusal(b"404 page not found"), Refusal::Uncertain);
    }
}
