//! A domain's definition, changed so that it describes a restored machine.
//!
//! Pure: text in, text out. Everything that is not named here stays as it was written, also what this
//! version knows nothing of.

use crate::error::{Error, Kind, Result};
use quick_xml::events::{BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What becomes of a definition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redefinition {
    /// Its name; as it was where nothing is said.
    pub name: Option<String>,
    /// Let libvirt give it another UUID.
    pub new_uuid: bool,
    /// Let libvirt give its network cards other addresses.
    pub new_macs: bool,
    /// Where its disks are, by the guest's devices.
    pub disks: BTreeMap<String, PlacedDisk>,
    /// Where its firmware's variables are.
    pub nvram: Option<PathBuf>,
    /// The bridge or network that takes the place of another, by what the definition names.
    pub networks: BTreeMap<String, String>,
}

/// Where a restored disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedDisk {
    /// The image.
    pub path: PathBuf,
    /// Its format, as libvirt calls it.
    pub format: String,
}

/// A definition that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redefined {
    /// As libvirt takes it.
    pub xml: String,
    /// Disks of the definition that have no place: they were left out of it.
    pub without: Vec<String>,
}

/// Elements that say what was true on the other host only.
const OF_THE_OTHER_HOST: [&[u8]; 4] = [b"backingStore", b"mirror", b"seclabel", b"alias"];

/// Changes a definition.
///
/// # Errors
/// [`Kind::BadInput`] where it is no definition.
pub fn redefine(definition: &str, changes: &Redefinition) -> Result<Redefined> {
    let mut rewriter = Rewriter {
        changes,
        writer: Writer::new(Vec::new()),
        path: Vec::new(),
        without: BTreeSet::new(),
    };
    let mut reader = Reader::from_str(definition);
    let mut disk: Option<Vec<Event<'static>>> = None;
    loop {
        let event = reader.read_event().map_err(|error| unreadable(&error))?;
        if matches!(event, Event::Eof) {
            break;
        }
        // A disk is judged as a whole: which one it is stands behind where it is.
        let is_disk = matches!(&event, Event::Start(element) if element.name().as_ref() == b"disk")
            && rewriter.path == [b"domain".to_vec(), b"devices".to_vec()];
        match &mut disk {
            None if is_disk => disk = Some(vec![event.into_owned()]),
            None => rewriter.take(event)?,
            Some(events) => {
                let ends =
                    matches!(&event, Event::End(element) if element.name().as_ref() == b"disk");
                events.push(event.into_owned());
                if ends {
                    let events = disk.take().unwrap_or_default();
                    rewriter.disk(events)?;
                }
            }
        }
    }
    if !rewriter.path.is_empty() || disk.is_some() {
        return Err(unreadable(&"it ends in the middle"));
    }
    let xml =
        String::from_utf8(rewriter.writer.into_inner()).map_err(|error| unreadable(&error))?;
    if !xml.contains("<domain") {
        return Err(unreadable(&"there is no domain in it"));
    }
    Ok(Redefined {
        xml,
        without: rewriter.without.into_iter().collect(),
    })
}

struct Rewriter<'a> {
    changes: &'a Redefinition,
    writer: Writer<Vec<u8>>,
    /// The elements that the next event stands in.
    path: Vec<Vec<u8>>,
    without: BTreeSet<String>,
}

impl Rewriter<'_> {
    fn take(&mut self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Start(element) => {
                self.path.push(element.name().as_ref().to_vec());
                if self.is_dropped() {
                    return Ok(());
                }
                let element = self.changed(element)?;
                self.write(Event::Start(element))?;
                match self.text() {
                    Some(other) => self.write(Event::Text(BytesText::new(&other))),
                    None => Ok(()),
                }
            }
            Event::Empty(element) => {
                self.path.push(element.name().as_ref().to_vec());
                let dropped = self.is_dropped();
                let written = match dropped {
                    true => Ok(()),
                    false => {
                        let element = self.changed(element)?;
                        self.write(Event::Empty(element))
                    }
                };
                self.path.pop();
                written
            }
            Event::End(element) => {
                let dropped = self.is_dropped();
                if self.path.pop().as_deref() != Some(element.name().as_ref()) {
                    return Err(unreadable(&"its elements are not closed in order"));
                }
                match dropped {
                    true => Ok(()),
                    false => self.write(Event::End(element)),
                }
            }
            // A text may come in several parts: what takes its place was written at its element's start.
            Event::Text(_) | Event::CData(_) | Event::GeneralRef(_)
                if self.is_dropped() || self.text().is_some() =>
            {
                Ok(())
            }
            other => self.write(other),
        }
    }

    /// A whole `<disk>`.
    fn disk(&mut self, events: Vec<Event<'static>>) -> Result<()> {
        let device = device_of(&events);
        let target = events.iter().find_map(|event| match event {
            Event::Empty(element) | Event::Start(element)
                if element.name().as_ref() == b"target" =>
            {
                attribute(element, "dev")
            }
            _ => None,
        });
        let Some(target) = target else {
            return Err(unreadable(&"a disk has no target"));
        };
        let Some(placed) = self.changes.disks.get(&target) else {
            // A CD drive stays, without what was in it; a disk that was not restored does not.
            if device != "cdrom" && device != "floppy" {
                self.without.insert(target);
                return Ok(());
            }
            let without_medium = events.into_iter().filter(|event| {
                !matches!(event, Event::Empty(element) if element.name().as_ref() == b"source")
            });
            return without_medium
                .into_iter()
                .try_for_each(|event| self.take(event));
        };
        let mut depth = 0;
        let mut is_skipping = false;
        for event in events {
            match &event {
                Event::Start(element) => {
                    depth += 1;
                    let name = element.name().as_ref().to_vec();
                    if depth == 1 {
                        let mut element = without_attributes(element, &["type"]);
                        element.push_attribute(("type", "file"));
                        self.path.push(name);
                        self.write(Event::Start(element))?;
                        let mut source = BytesStart::new("source");
                        source.push_attribute(("file", placed.path.to_string_lossy().as_ref()));
                        self.write(Event::Empty(source))?;
                        continue;
                    }
                    if depth == 2 && is_replaced(&name) {
                        is_skipping = true;
                    }
                }
                Event::End(_) => {
                    depth -= 1;
                    if depth == 1 && is_skipping {
                        is_skipping = false;
                        continue;
                    }
                }
                Event::Empty(element) if depth == 1 => {
                    let name = element.name().as_ref().to_vec();
                    if is_replaced(&name) {
                        continue;
                    }
                    if name == b"driver" {
                        let mut driver = without_attributes(element, &["type"]);
                        driver.push_attribute(("type", placed.format.as_str()));
                        self.write(Event::Empty(driver))?;
                        continue;
                    }
                }
                _ => {}
            }
            if !is_skipping {
                self.take(event)?;
            }
        }
        Ok(())
    }

    fn is_dropped(&self) -> bool {
        let path: Vec<&[u8]> = self.path.iter().map(Vec::as_slice).collect();
        if path.iter().any(|name| OF_THE_OTHER_HOST.contains(name)) {
            return true;
        }
        match path.as_slice() {
            [b"domain", b"uuid", ..] => self.changes.new_uuid,
            [b"domain", b"devices", b"interface", b"mac", ..] => self.changes.new_macs,
            // A console's or channel's socket is made anew.
            [b"domain", b"devices", b"channel", b"source", ..] => true,
            _ => false,
        }
    }

    /// What stands in place of the text here.
    fn text(&self) -> Option<String> {
        let path: Vec<&[u8]> = self.path.iter().map(Vec::as_slice).collect();
        match path.as_slice() {
            [b"domain", b"name"] => self.changes.name.clone(),
            [b"domain", b"os", b"nvram"] => {
                let nvram = self.changes.nvram.as_ref()?;
                Some(nvram.to_string_lossy().into_owned())
            }
            _ => None,
        }
    }

    /// An element with other attributes.
    fn changed<'e>(&self, element: BytesStart<'e>) -> Result<BytesStart<'e>> {
        let path: Vec<&[u8]> = self.path.iter().map(Vec::as_slice).collect();
        match path.as_slice() {
            // The number it ran under.
            [b"domain"] => Ok(without_attributes(&element, &["id"]).into_owned()),
            [b"domain", b"devices", b"interface", b"source"] => {
                let mut changed = element.to_owned().into_owned();
                changed.clear_attributes();
                for known in element.attributes() {
                    let known = known.map_err(|error| unreadable(&error))?;
                    let value = known
                        .normalized_value(XmlVersion::Implicit1_0)
                        .map_err(|error| unreadable(&error))?;
                    let other = self.changes.networks.get(value.as_ref());
                    let name = String::from_utf8_lossy(known.key.as_ref()).into_owned();
                    // A port that the other host gave.
                    if name != "portid" {
                        let value = other.map_or(value.as_ref(), String::as_str);
                        changed.push_attribute((name.as_str(), value));
                    }
                }
                Ok(changed)
            }
            _ => Ok(element),
        }
    }

    fn write(&mut self, event: Event<'_>) -> Result<()> {
        self.writer
            .write_event(event)
            .map_err(|error| unreadable(&error))
    }
}

/// `disk` where nothing is said.
fn device_of(events: &[Event<'_>]) -> String {
    match events.first() {
        Some(Event::Start(element)) => attribute(element, "device"),
        _ => None,
    }
    .unwrap_or_else(|| "disk".to_owned())
}

fn is_replaced(name: &[u8]) -> bool {
    name == b"source" || OF_THE_OTHER_HOST.contains(&name)
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let found = element.try_get_attribute(name).ok()??;
    Some(
        found
            .normalized_value(XmlVersion::Implicit1_0)
            .ok()?
            .into_owned(),
    )
}

fn without_attributes(element: &BytesStart<'_>, names: &[&str]) -> BytesStart<'static> {
    let mut changed = element.to_owned().into_owned();
    changed.clear_attributes();
    for known in element.attributes().flatten() {
        if !names
            .iter()
            .any(|name| name.as_bytes() == known.key.as_ref())
        {
            changed.push_attribute(known);
        }
    }
    changed
}

fn unreadable(error: &dyn std::fmt::Display) -> Error {
    Error::new(
        Kind::BadInput,
        format!("the definition of a domain cannot be read: {error}"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const XML: &str = r#"<domain type="kvm" id="3">
  <name>web&amp;01</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <os><loader type="pflash">/usr/share/OVMF/OVMF_CODE.fd</loader><nvram template="/t">/var/old_VARS.fd</nvram></os>
  <unheard of="things"><deep>kept</deep></unheard>
  <devices>
    <disk type="block" device="disk">
      <driver name="qemu" type="raw" discard="unmap"/>
      <source dev="/dev/vg/web01" index="1"><seclabel model="dac"/></source>
      <backingStore type="file"><source file="/srv/base.qcow2"/></backingStore>
      <target dev="vda" bus="virtio"/>
      <alias name="virtio-disk0"/>
    </disk>
    <disk type="file" device="disk"><source file="/srv/x"/><target dev="vdb"/></disk>
    <disk type="file" device="cdrom"><driver name="qemu"/><source file="/iso"/><target dev="sda"/><readonly/></disk>
    <interface type="bridge"><mac address="52:54:00:aa:bb:cc"/><source bridge="br0"/><model type="virtio"/></interface>
    <channel type="unix"><source mode="bind" path="/run/old"/><target type="virtio" name="org.qemu.guest_agent.0"/></channel>
  </devices>
</domain>
"#;

    fn copy() -> Redefinition {
        Redefinition {
            name: Some("web01-<copy>".to_owned()),
            new_uuid: true,
            new_macs: true,
            disks: [(
                "vda".to_owned(),
                PlacedDisk {
                    path: "/srv/it's/a.qcow2".into(),
                    format: "qcow2".to_owned(),
                },
            )]
            .into(),
            nvram: Some("/srv/new_VARS.fd".into()),
            networks: [("br0".to_owned(), "lab".to_owned())].into(),
        }
    }

    #[test]
    fn a_copy_is_another_machine_with_other_disks() {
        let made = redefine(XML, &copy()).unwrap();
        let xml = &made.xml;
        assert_eq!(made.without, ["vdb"]);
        for there in [
            "<name>web01-&lt;copy&gt;</name>",
            "a.qcow2",
            "type=\"qcow2\"",
            "discard=\"unmap\"",
            "<target dev=\"vda\" bus=\"virtio\"/>",
            "/srv/new_VARS.fd</nvram>",
            "<unheard of=\"things\"><deep>kept</deep></unheard>",
            "bridge=\"lab\"",
            "org.qemu.guest_agent.0",
            "<target dev=\"sda\"/>",
        ] {
            assert!(xml.contains(there), "{there} in {xml}");
        }
        for gone in [
            "web&amp;01",
            "c7a5fdbd",
            "id=\"3\"",
            "/dev/vg/web01",
            "backingStore",
            "base.qcow2",
            "seclabel",
            "virtio-disk0",
            "52:54:00",
            "/run/old",
            "vdb",
            "/iso",
            "old_VARS",
        ] {
            assert!(!xml.contains(gone), "{gone} in {xml}");
        }
        // It is read again as what it says.
        let again = redefine(xml, &copy()).unwrap();
        assert!(again.without.is_empty());
    }

    #[test]
    fn what_stays_stays() {
        let disks = copy().disks;
        let changes = Redefinition {
            disks,
            ..Redefinition::default()
        };
        let xml = redefine(XML, &changes).unwrap().xml;
        for there in ["web&amp;01", "c7a5fdbd", "52:54:00", "br0", "old_VARS"] {
            assert!(xml.contains(there), "{there} in {xml}");
        }
    }

    #[test]
    fn what_is_no_definition_is_refused() {
        for xml in [
            "",
            "text",
            "<domain>",
            "<domain></other>",
            "<domain><devices><disk></disk></devices></domain>",
        ] {
            let error = redefine(xml, &copy()).unwrap_err();
            assert_eq!(error.kind(), Kind::BadInput, "{xml:?}");
        }
    }
}
