//! The origin and target of a ride, and the distance between them.

use serde::{Deserialize, Serialize};

/// Mean radius of the Earth, in mm.
const EARTH_RADIUS_MM: f64 = 6_371_008_800.0;

/// Origin and target of a ride, in degrees. A retry under the same key must have the same journey.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Journey {
    /// North of the equator, -90 to 90.
    pub origin_lat: f64,
    /// East of Greenwich, -180 to 180.
    pub origin_lon: f64,
    /// North of the equator, -90 to 90.
    pub target_lat: f64,
    /// East of Greenwich, -180 to 180.
    pub target_lon: f64,
}

impl Journey {
    /// The length of the great circle between origin and target, in mm; at least 1, because there are no shorter rides.
    ///
    /// ```
    /// let journey = booking::Journey { origin_lat: 0.0, origin_lon: 0.0, target_lat: 0.0, target_lon: 180.0 };
    /// assert_eq!(journey.distance_mm() / 1_000_000, 20_015, "half around the Earth, in km");
    /// ```
    pub fn distance_mm(&self) -> i64 {
        let [lat_a, lon_a, lat_b, lon_b] =
            [self.origin_lat, self.origin_lon, self.target_lat, self.target_lon].map(f64::to_radians);
        // The haversine formula is exact for small distances; the arc cosine is not.
        let square = |angle: f64| (angle / 2.0).sin().powi(2);
        let haversine = square(lat_b - lat_a) + lat_a.cos() * lat_b.cos() * square(lon_b - lon_a);
        let angle = 2.0 * haversine.min(1.0).sqrt().asin();
        ((angle * EARTH_RADIUS_MM).round() as i64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn km([origin_lat, origin_lon, target_lat, target_lon]: [f64; 4]) -> f64 {
        Journey { origin_lat, origin_lon, target_lat, target_lon }.distance_mm() as f64 / 1e6
    }

    #[test]
    fn distances_are_those_of_the_great_circle() {
        // Berlin to San Francisco, one degree of the equator, pole to pole, across the date line.
        assert!((km([52.52, 13.405, 37.7749, -122.4194]) - 9_104.7).abs() < 5.0);
        assert!((km([0.0, 0.0, 0.0, 1.0]) - 111.195).abs() < 0.001);
        assert!((km([90.0, 0.0, -90.0, 77.0]) - 20_015.1).abs() < 0.1);
        assert!((km([0.0, 179.5, 0.0, -179.5]) - 111.195).abs() < 0.001);
    }

    #[test]
    fn a_ride_to_its_own_origin_is_the_shortest() {
        assert_eq!(Journey { origin_lat: 0.0, origin_lon: 0.0, target_lat: 0.0, target_lon: 0.0 }.distance_mm(), 1);
    }
}
