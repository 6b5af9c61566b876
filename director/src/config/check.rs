//! From the file to a [`Config`]: everything that can be known to be wrong before anything is started, with its line.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::document::{self, Document};
use super::{
    ArrayName, ByteSize, Config, ConfigError, DeviceAddress, Director, DirectorNumber, MatrixAddress, MatrixSecurity,
    Pair, PairNumber, Reason, RegistryPlace, Shelf, Token,
};
use crate::membership::DirectorId;

/// Devices of a pair.
const DEVICES: std::ops::RangeInclusive<usize> = 2..=16;
/// Lanes, work areas and the takeover's frames need this much.
const CACHE_LEAST: &str = "16MiB";
/// Fewest bytes that a partner may have dirty.
const MIRROR_LEAST: &str = "1MiB";

/// What is wrong, and where in the text.
type Wrong = (Range<usize>, Reason);

pub(super) fn config(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let wrong = |(span, why): Wrong| ConfigError::Wrong { path: path.to_owned(), line: line_of(text, span.start), why };
    let document: Document = toml::from_str(text).map_err(|error| {
        wrong((error.span().unwrap_or(text.len()..text.len()), Reason::Syntax(error.message().to_owned())))
    })?;
    checked(document, path.parent().unwrap_or(Path::new(""))).map_err(wrong)
}

/// From 1.
fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn checked(document: Document, base: &Path) -> Result<Config, Wrong> {
    let Document { array, registry, control, matrix, pairs: in_pairs, directors: in_directors, shelf } = document;
    let whole = registry.span();
    let token = control.token.as_ref().map(token).transpose()?;
    let pairs = pairs(&in_pairs)?;
    let directors = directors(&in_directors, &pairs, base)?;
    for pair in &in_pairs {
        let directors = directors.iter().filter(|director| director.pair.0 == *pair.as_ref().id.as_ref()).count();
        if directors != 2 {
            let why = Reason::NotTwo { pair: *pair.as_ref().id.as_ref(), directors };
            return Err((pair.as_ref().id.span(), why));
        }
    }
    let name = ArrayName::new(array.name.as_ref()).ok_or_else(|| (array.name.span(), Reason::Name))?;
    let uuid = parse_uuid(array.uuid.as_ref()).ok_or_else(|| (array.uuid.span(), Reason::Uuid))?;
    let registry = registry_place(registry.into_inner(), whole.clone(), base)?;
    let config = Config {
        array: name,
        uuid,
        registry,
        security: security(&matrix)?,
        token,
        pairs,
        directors,
        shelf: shelf.map(|shelf| shelf_of(&shelf, base)).transpose()?,
    };
    if config.pairs.is_empty() {
        return Err((whole, Reason::None("[[pairs]]")));
    }
    one_machine(&config, &in_directors, whole)?;
    addresses(&config, &in_directors)?;
    Ok(config)
}

fn token(token: &Spanned<String>) -> Result<Token, Wrong> {
    Token::new(token.as_ref()).ok_or_else(|| (token.span(), Reason::Token))
}

/// Fewest characters of the matrix's secret.
const SECRET_LEN_MIN: usize = 32;

fn security(matrix: &document::Matrix) -> Result<MatrixSecurity, Wrong> {
    match &matrix.secret {
        Some(secret) => {
            let strong = Token::new(secret.as_ref()).filter(|secret| secret.as_str().len() >= SECRET_LEN_MIN);
            strong.map(MatrixSecurity::Secret).ok_or_else(|| (secret.span(), Reason::Secret))
        }
        None if matrix.trusted_network => Ok(MatrixSecurity::TrustedNetwork),
        None => Ok(MatrixSecurity::Loopback),
    }
}

fn matrix(written: &Spanned<String>, base: &Path) -> Result<MatrixAddress, Wrong> {
    let text: &String = written.as_ref();
    match text.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_unspecified() && address.port() != 0 => Ok(MatrixAddress::Tcp(address)),
        Err(_) if Path::new(text).extension().is_some_and(|extension| extension == "sock") => {
            Ok(MatrixAddress::Socket(base.join(text)))
        }
        Ok(_) | Err(_) => Err((written.span(), Reason::MatrixAddress(text.clone()))),
    }
}

fn registry_place(registry: document::Registry, whole: Range<usize>, base: &Path) -> Result<RegistryPlace, Wrong> {
    match (registry.directory, registry.etcd) {
        (Some(directory), None) => Ok(RegistryPlace::Embedded(base.join(directory.into_inner()))),
        (None, Some(endpoints)) if !endpoints.as_ref().is_empty() => {
            let parse = |endpoint: &Spanned<String>| {
                endpoint.as_ref().parse().map_err(|error| (endpoint.span(), Reason::Endpoint(error)))
            };
            endpoints.as_ref().iter().map(parse).collect::<Result<_, _>>().map(RegistryPlace::Etcd)
        }
        (None, Some(endpoints)) => Err((endpoints.span(), Reason::Registry)),
        (Some(_), Some(_)) | (None, None) => Err((whole, Reason::Registry)),
    }
}

fn pairs(written: &[Spanned<document::Pair>]) -> Result<Vec<Pair>, Wrong> {
    let mut pairs: Vec<Pair> = Vec::new();
    for pair in written {
        let (span, pair) = (pair.span(), pair.as_ref());
        let id = PairNumber(*pair.id.as_ref());
        if pairs.iter().any(|other| other.id == id) {
            return Err((pair.id.span(), Reason::Twice { what: "pair", id: id.0.to_string() }));
        }
        let (cache, mirror) = (pair.cache.0, pair.mirror.0);
        let least: ByteSize = CACHE_LEAST.parse().expect("a size");
        let mirror_least: ByteSize = MIRROR_LEAST.parse().expect("a size");
        let frames_max = u64::from(u32::MAX);
        if cache < least || mirror < mirror_least || mirror.bytes() > cache.bytes() / 2 || cache.blocks().0 > frames_max
        {
            return Err((span, Reason::Memory { mirror, cache, least }));
        }
        let (heartbeat_ms, lease_ms) = (pair.heartbeat_ms, pair.lease_ms);
        if heartbeat_ms == 0 || u64::from(lease_ms) < u64::from(heartbeat_ms) * 4 {
            return Err((span, Reason::Timing { lease_ms, heartbeat_ms }));
        }
        let [heartbeat, lease] = [heartbeat_ms, lease_ms].map(|ms| Duration::from_millis(ms.into()));
        pairs.push(Pair { id, cache, mirror, heartbeat, lease });
    }
    pairs.sort_by_key(|pair| pair.id);
    Ok(pairs)
}

fn directors(written: &[Spanned<document::Director>], pairs: &[Pair], base: &Path) -> Result<Vec<Director>, Wrong> {
    let mut directors: Vec<Director> = Vec::new();
    for director in written.iter().map(Spanned::as_ref) {
        let id = DirectorNumber(*director.id.as_ref());
        if directors.iter().any(|other| other.id == id) {
            return Err((director.id.span(), Reason::Twice { what: "director", id: id.0.to_string() }));
        }
        let pair = PairNumber(*director.pair.as_ref());
        if !pairs.iter().any(|other| other.id == pair) {
            return Err((director.pair.span(), Reason::NoPair(pair.0)));
        }
        if director.host.as_ref().is_empty() {
            return Err((director.host.span(), Reason::Host));
        }
        directors.push(Director {
            id,
            pair,
            role: DirectorId::A,
            host: director.host.as_ref().clone(),
            matrix: matrix(&director.matrix, base)?,
            devices: devices(id, &director.devices, base)?,
            control: *director.control.as_ref(),
            nvme_tcp: port(director)?,
            advertise: director.advertise.as_ref().map(|address| *address.as_ref()),
            core: director.core,
        });
    }
    directors.sort_by_key(|director| director.id);
    for at in 0..directors.len() {
        let first = directors.iter().find(|other| other.pair == directors[at].pair).map(|first| first.id);
        if first != Some(directors[at].id) {
            directors[at].role = DirectorId::B;
        }
    }
    for director in &directors {
        let partner = directors.iter().find(|other| other.pair == director.pair && other.id != director.id);
        if let Some(partner) = partner.filter(|partner| partner.devices.len() != director.devices.len()) {
            let (devices, partner) = (director.devices.len(), partner.devices.len());
            let why = Reason::DevicesDiffer { director: director.id.0, devices, partner };
            return Err((place_of(written, director.id, |written| written.devices.span()), why));
        }
    }
    Ok(directors)
}

/// Where hosts connect, if they can be told.
fn port(director: &document::Director) -> Result<Option<SocketAddr>, Wrong> {
    let found = director.advertise.as_ref().or(director.nvme_tcp.as_ref());
    match (found, &director.nvme_tcp) {
        (Some(found), None) => Err((found.span(), Reason::NothingToAdvertise)),
        (Some(found), Some(_)) if found.as_ref().ip().is_unspecified() || found.as_ref().port() == 0 => {
            Err((found.span(), Reason::Advertise(*found.as_ref())))
        }
        (Some(_) | None, listen) => Ok(listen.as_ref().map(|listen| *listen.as_ref())),
    }
}

fn devices(
    director: DirectorNumber,
    written: &Spanned<Vec<Spanned<String>>>,
    base: &Path,
) -> Result<Vec<DeviceAddress>, Wrong> {
    let mut devices = Vec::new();
    for address in written.as_ref() {
        let text = address.as_ref();
        let device = match text.parse() {
            Ok(pci) => DeviceAddress::Pci(pci),
            Err(_) if Path::new(text).extension().is_some_and(|extension| extension == "sock") => {
                DeviceAddress::Socket(base.join(text))
            }
            Err(_) => return Err((address.span(), Reason::DeviceAddress(text.clone()))),
        };
        if devices.contains(&device) {
            return Err((address.span(), Reason::AddressTwice(text.clone())));
        }
        devices.push(device);
    }
    if !DEVICES.contains(&devices.len()) {
        return Err((written.span(), Reason::Devices { director: director.0, devices: devices.len() }));
    }
    Ok(devices)
}

/// Where something of a director stands in the file.
fn place_of(
    written: &[Spanned<document::Director>],
    id: DirectorNumber,
    what: impl Fn(&document::Director) -> Range<usize>,
) -> Range<usize> {
    let director = written.iter().find(|director| *director.as_ref().id.as_ref() == id.0);
    director.map_or(0..0, |director| what(director.as_ref()))
}

/// Who may be on different machines: nobody whose registry is a directory, and no two of a pair that do not reach each other and all devices.
fn one_machine(config: &Config, written: &[Spanned<document::Director>], registry: Range<usize>) -> Result<(), Wrong> {
    let first = &config.directors[0];
    let elsewhere = config.directors.iter().find(|director| director.host != first.host);
    if let (RegistryPlace::Embedded(_), Some(other)) = (&config.registry, elsewhere) {
        let (first, other) = (first.host.clone(), other.host.clone());
        return Err((registry, Reason::EmbeddedOnSeveralHosts { first, other }));
    }
    for director in &config.directors {
        let partner = config.partner(director);
        let (pair, first, other) = (director.pair.0, director.id.0, partner.id.0);
        let reaches = |director: &Director| {
            matches!(director.matrix, MatrixAddress::Tcp(address) if !address.ip().is_loopback())
                && director.devices.iter().all(|device| matches!(device, DeviceAddress::Pci(_)))
        };
        if director.host != partner.host && !(reaches(director) && reaches(partner)) {
            let place = place_of(written, director.id, |written| written.id.span());
            return Err((place, Reason::PairOnSeveralHosts { pair, first, other }));
        }
        let place = || place_of(written, director.id, |written| written.matrix.span());
        if matches!(director.matrix, MatrixAddress::Tcp(_)) != matches!(partner.matrix, MatrixAddress::Tcp(_)) {
            return Err((place(), Reason::MatrixMixed { pair, first, other }));
        }
        let far = matches!(director.matrix, MatrixAddress::Tcp(address) if !address.ip().is_loopback());
        if far && config.security == MatrixSecurity::Loopback {
            return Err((place(), Reason::SecretMissing(director.id.0)));
        }
    }
    Ok(())
}

/// No two listen at one address, no two drive one controller, and nobody listens to everybody.
fn addresses(config: &Config, written: &[Spanned<document::Director>]) -> Result<(), Wrong> {
    for (at, director) in config.directors.iter().enumerate() {
        let before = || config.directors[..at].iter().filter(|other| other.host == director.host);
        let listens = |other: &Director| {
            let matrix = match other.matrix {
                MatrixAddress::Tcp(address) => Some(address),
                MatrixAddress::Socket(_) => None,
            };
            [Some(other.control), other.nvme_tcp, matrix].into_iter().flatten().collect::<Vec<_>>()
        };
        let taken: Vec<_> = before().flat_map(listens).collect();
        // Port 0 is any that is free.
        if director.control.port() != 0 && taken.contains(&director.control) {
            let place = place_of(written, director.id, |written| written.control.span());
            return Err((place, Reason::AddressTwice(director.control.to_string())));
        }
        if let Some(port) = director.nvme_tcp.filter(|port| taken.contains(port) || *port == director.control) {
            let place = place_of(written, director.id, |written| written.nvme_tcp.as_ref().map_or(0..0, Spanned::span));
            return Err((place, Reason::AddressTwice(port.to_string())));
        }
        if before().any(|other| other.matrix == director.matrix) {
            let place = place_of(written, director.id, |written| written.matrix.span());
            return Err((place, Reason::AddressTwice(director.matrix.to_string())));
        }
        if let Some(device) =
            director.devices.iter().find(|device| before().any(|other| other.devices.contains(device)))
        {
            let place = place_of(written, director.id, |written| written.devices.span());
            return Err((place, Reason::AddressTwice(device.to_string())));
        }
        if !director.control.ip().is_loopback() && config.token.is_none() {
            let place = place_of(written, director.id, |written| written.control.span());
            return Err((place, Reason::TokenMissing(director.id.0)));
        }
    }
    Ok(())
}

fn shelf_of(shelf: &document::Shelf, base: &Path) -> Result<Shelf, Wrong> {
    let devices = *shelf.devices.as_ref();
    if !(1..=64).contains(&devices) {
        return Err((shelf.devices.span(), Reason::ShelfDevices));
    }
    let directory: PathBuf = base.join(&shelf.directory);
    let (size, files, cache_blocks) = (shelf.size.0, shelf.files, shelf.cache_blocks);
    Ok(Shelf { directory, devices, size, files, cache_blocks })
}

/// 32 hexadecimal digits; dashes between bytes do not count.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect();
    if digits.len() == 32 { bytes.try_into().ok() } else { None }
}
