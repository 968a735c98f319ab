//! Encodes a setting as XML, the format of parameters of WMI methods.

use hvsock_address::ServiceId;

use crate::Switch;

/// Encodes a `Msvm_GuestCommunicationServiceSettingData` in the XML of DMTF's DSP0201 ("CIM DTD
/// 2.0"), one of the two formats that Hyper-V's methods accept for an embedded instance. Microsoft's
/// samples produce it with `GetText(TextFormat.CimDtd20)`. Absent properties stay unchanged. A new
/// setting has no `InstanceID` yet.
pub(crate) fn setting(instance_id: Option<&str>, service: ServiceId, switch: Switch) -> String {
    let mut text = "<INSTANCE CLASSNAME=\"Msvm_GuestCommunicationServiceSettingData\">".to_owned();
    let mut property = |name: &str, kind: &str, value: &str| {
        text.push_str(&format!(
            "<PROPERTY NAME=\"{name}\" TYPE=\"{kind}\"><VALUE>{}</VALUE></PROPERTY>",
            escaped(value)
        ));
    };
    if let Some(instance_id) = instance_id {
        property("InstanceID", "string", instance_id);
    }
    property("Name", "string", &service.to_string());
    property("EnabledStatePolicy", "uint16", &switch.number().to_string());
    text.push_str("</INSTANCE>");
    text
}

/// Escapes text for XML content. Control characters are invalid there and are left out.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_one_instance_with_escaped_values() {
        let service = ServiceId::from_port(2761);
        let new = setting(None, service, Switch::Enabled);
        assert_eq!(
            new,
            "<INSTANCE CLASSNAME=\"Msvm_GuestCommunicationServiceSettingData\">\
             <PROPERTY NAME=\"Name\" TYPE=\"string\">\
             <VALUE>00000ac9-facb-11e6-bd58-64006a7986d3</VALUE></PROPERTY>\
             <PROPERTY NAME=\"EnabledStatePolicy\" TYPE=\"uint16\"><VALUE>2</VALUE></PROPERTY>\
             </INSTANCE>"
        );
        let strange = setting(Some("Microsoft:a\\b</VALUE>\0&"), service, Switch::Disabled);
        assert!(
            strange.contains("<VALUE>Microsoft:a\\b&lt;/VALUE&gt;&amp;</VALUE>"),
            "{strange}"
        );
        assert!(strange.contains("<VALUE>3</VALUE>"), "{strange}");
    }
}
