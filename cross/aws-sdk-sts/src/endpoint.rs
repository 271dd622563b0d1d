//! Where the service is, as the SDK's rules have it.

/// Partitions by how their regions begin, with the domain of their endpoints and that of endpoints with IPv6 too.
const PARTITIONS: &[(&str, &str, &str)] = &[
    ("cn-", "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    ("us-gov-", "amazonaws.com", "api.aws"),
    ("us-iso-", "c2s.ic.gov", "api.aws.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov", "api.aws.scloud"),
    ("eu-isoe-", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
    ("eusc-", "amazonaws.eu", "api.amazonwebservices.eu"),
];

/// Of the service in `region`. FIPS endpoints are those that all of GovCloud has under the plain name.
pub fn endpoint(region: &str, fips: bool, dual_stack: bool) -> String {
    if region == "aws-global" {
        return "https://sts.amazonaws.com".to_owned();
    }
    let (start, domain, dual_stack_domain) = PARTITIONS
        .iter()
        .find(|(start, ..)| region.starts_with(start))
        .unwrap_or(&("", "amazonaws.com", "api.aws"));
    let plain_is_fips = *start == "us-gov-" && !dual_stack;
    let service = if fips && !plain_is_fips {
        "sts-fips"
    } else {
        "sts"
    };
    let domain = if dual_stack {
        dual_stack_domain
    } else {
        domain
    };
    format!("https://{service}.{region}.{domain}")
}

/// The region that a request to the service in `region` is signed for.
pub fn signing_region(region: &str) -> &str {
    if region == "aws-global" {
        "us-east-1"
    } else {
        region
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the SDK's own tests of its rules.
    #[test]
    fn endpoints_are_those_of_the_sdk() {
        for (region, fips, dual_stack, url) in [
            (
                "us-west-2",
                false,
                false,
                "https://sts.us-west-2.amazonaws.com",
            ),
            (
                "us-west-2",
                true,
                false,
                "https://sts-fips.us-west-2.amazonaws.com",
            ),
            (
                "us-east-1",
                true,
                true,
                "https://sts-fips.us-east-1.api.aws",
            ),
            ("us-east-1", false, true, "https://sts.us-east-1.api.aws"),
            ("aws-global", false, false, "https://sts.amazonaws.com"),
            (
                "cn-north-1",
                false,
                false,
                "https://sts.cn-north-1.amazonaws.com.cn",
            ),
            (
                "cn-north-1",
                true,
                true,
                "https://sts-fips.cn-north-1.api.amazonwebservices.com.cn",
            ),
            (
                "us-gov-east-1",
                false,
                false,
                "https://sts.us-gov-east-1.amazonaws.com",
            ),
            (
                "us-gov-east-1",
                true,
                false,
                "https://sts.us-gov-east-1.amazonaws.com",
            ),
            (
                "us-gov-east-1",
                true,
                true,
                "https://sts-fips.us-gov-east-1.api.aws",
            ),
            (
                "us-iso-east-1",
                true,
                false,
                "https://sts-fips.us-iso-east-1.c2s.ic.gov",
            ),
            (
                "us-isob-east-1",
                false,
                false,
                "https://sts.us-isob-east-1.sc2s.sgov.gov",
            ),
        ] {
            assert_eq!(endpoint(region, fips, dual_stack), url);
        }
    }
}
