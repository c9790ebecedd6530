//! The page's files. They are compiled in, nothing is loaded from another host, and there is no build step.

/// Path, type and content of each file.
pub(crate) const ASSETS: [(&str, &str, &str); 18] = [
    ("/", "text/html; charset=utf-8", include_str!("../page/index.html")),
    ("/page.css", "text/css", include_str!("../page/page.css")),
    ("/page.js", "text/javascript", include_str!("../page/page.js")),
    ("/dom.js", "text/javascript", include_str!("../page/dom.js")),
    ("/figures.js", "text/javascript", include_str!("../page/figures.js")),
    ("/container.js", "text/javascript", include_str!("../page/container.js")),
    ("/consumers.js", "text/javascript", include_str!("../page/consumers.js")),
    ("/processes.js", "text/javascript", include_str!("../page/processes.js")),
    ("/incidents.js", "text/javascript", include_str!("../page/incidents.js")),
    ("/lines.js", "text/javascript", include_str!("../page/lines.js")),
    ("/partitions.js", "text/javascript", include_str!("../page/partitions.js")),
    ("/plots.js", "text/javascript", include_str!("../page/plots.js")),
    ("/wallets.js", "text/javascript", include_str!("../page/wallets.js")),
    ("/words.js", "text/javascript", include_str!("../page/words.js")),
    ("/favicon.svg", "image/svg+xml", include_str!("../page/favicon.svg")),
    ("/vendor/uplot.js", "text/javascript", include_str!("../page/vendor/uPlot-1.6.32.min.js")),
    ("/vendor/uplot.css", "text/css", include_str!("../page/vendor/uPlot-1.6.32.min.css")),
    ("/vendor/uplot-license.txt", "text/plain; charset=utf-8", include_str!("../page/vendor/uPlot-LICENSE")),
];
