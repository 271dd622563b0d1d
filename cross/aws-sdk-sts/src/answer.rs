//! The service's XML. It is flat and made by a machine: of each element there is one, and none has attributes.

use std::borrow::Cow;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use crate::operation::{AssumeRoleOutput, Refusal};
use crate::types::{AssumedRoleUser, Credentials};

/// Of GetCallerIdentity's answer the caller's ARN is taken, as that of an AssumedRoleUser.
///
/// # Errors
/// The service's refusal, or what is wrong with its answer.
pub fn read(success: bool, xml: &str) -> Result<AssumeRoleOutput, Refusal> {
    if !success {
        return Err(refusal(xml));
    }
    if let Some(caller) = element(xml, "GetCallerIdentityResult") {
        let arn = element(caller, "Arn").ok_or_else(|| missing("Arn"))?;
        return Ok(AssumeRoleOutput {
            credentials: None,
            assumed_role_user: Some(AssumedRoleUser {
                arn: unescape(arn).into_owned(),
            }),
        });
    }
    let credentials = element(xml, "Credentials").ok_or_else(|| missing("Credentials"))?;
    let text = |name| {
        element(credentials, name)
            .map(|text| unescape(text).into_owned())
            .ok_or_else(|| missing(name))
    };
    let expiration = DateTime::from_str(&text("Expiration")?, Format::DateTime)
        .map_err(|_| missing("Expiration"))?;
    let user = element(xml, "AssumedRoleUser").and_then(|user| element(user, "Arn"));
    Ok(AssumeRoleOutput {
        credentials: Some(Credentials {
            access_key_id: text("AccessKeyId")?,
            secret_access_key: text("SecretAccessKey")?,
            session_token: text("SessionToken")?,
            expiration,
        }),
        assumed_role_user: user.map(|arn| AssumedRoleUser {
            arn: unescape(arn).into_owned(),
        }),
    })
}

fn refusal(xml: &str) -> Refusal {
    let text = |name| element(xml, name).map(|text| unescape(text).into_owned());
    Refusal {
        code: text("Code").unwrap_or_default(),
        message: text("Message")
            .unwrap_or_else(|| "the answer is not the Security Token Service's".to_owned()),
    }
}

fn missing(name: &str) -> Refusal {
    Refusal {
        code: String::new(),
        message: format!("the Security Token Service's answer has no usable {name}"),
    }
}

/// What stands in the first element of that name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text)
}

/// XML 1.0 section 4.6; `&` comes last, or it would make new ones.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return text.into();
    }
    let pairs = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ];
    let plain = pairs
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in the service's API reference.
    const ANSWER: &str = "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">
  <AssumeRoleResult>
    <SourceIdentity>Alice</SourceIdentity>
    <AssumedRoleUser>
      <Arn>arn:aws:sts::123456789012:assumed-role/demo/John&amp;lt;</Arn>
      <AssumedRoleId>ARO123EXAMPLE123:John</AssumedRoleId>
    </AssumedRoleUser>
    <Credentials>
      <AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId>
      <SecretAccessKey>wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY</SecretAccessKey>
      <SessionToken>AQoDYXdzEPT//////////wEX==</SessionToken>
      <Expiration>2019-11-09T13:34:41Z</Expiration>
    </Credentials>
    <PackedPolicySize>6</PackedPolicySize>
  </AssumeRoleResult>
</AssumeRoleResponse>";

    #[test]
    fn credentials_are_read() {
        let output = read(true, ANSWER).expect("complete");
        let credentials = output.credentials.expect("given");
        assert_eq!(credentials.access_key_id, "ASIAIOSFODNN7EXAMPLE");
        assert_eq!(
            credentials.secret_access_key,
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY"
        );
        assert_eq!(credentials.session_token, "AQoDYXdzEPT//////////wEX==");
        assert_eq!(credentials.expiration.secs(), 1_573_306_481);
        let user = output.assumed_role_user.expect("given");
        assert_eq!(
            user.arn,
            "arn:aws:sts::123456789012:assumed-role/demo/John&lt;"
        );
    }

    #[test]
    fn a_caller_is_read() {
        // As in the service's API reference.
        let xml = "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">
  <GetCallerIdentityResult>
   <Arn>arn:aws:iam::123456789012:user/Alice</Arn>
    <UserId>AIDACKCEVSQ6C2EXAMPLE</UserId>
    <Account>123456789012</Account>
  </GetCallerIdentityResult>
</GetCallerIdentityResponse>";
        let output = read(true, xml).expect("complete");
        assert_eq!(output.credentials, None);
        let user = output.assumed_role_user.expect("given");
        assert_eq!(user.arn, "arn:aws:iam::123456789012:user/Alice");
        let error = read(true, &xml.replace("Arn", "Other")).expect_err("incomplete");
        assert!(error.to_string().contains("Arn"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        for name in [
            "AccessKeyId",
            "SecretAccessKey",
            "SessionToken",
            "Expiration",
            "Credentials",
        ] {
            let error = read(true, &ANSWER.replace(name, "Other")).expect_err("incomplete");
            assert!(error.to_string().contains(name), "{error}");
        }
        let late = ANSWER.replace("2019-11-09T13:34:41Z", "tomorrow");
        assert!(
            read(true, &late)
                .expect_err("no time")
                .message
                .contains("Expiration")
        );
    }

    #[test]
    fn a_refusal_has_code_and_message() {
        let xml = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>\
                   <Message>User &quot;a&quot; is not authorized</Message></Error></ErrorResponse>";
        let refusal = read(false, xml).expect_err("refused");
        assert_eq!(
            refusal.to_string(),
            "AccessDenied: User \"a\" is not authorized"
        );
        let page = read(false, "<html>Bad Gateway</html>").expect_err("a proxy's");
        assert!(page.code.is_empty() && page.message.contains("not the Security Token Service's"));
    }
}
