import { useEffect, useState } from "preact/hooks";
import { count } from "../../format";
import { LeftOut } from "../../parts/left-out";
import { attempt } from "../../parts/notices";
import { previewsOf } from "../../state/left-out";
import { texts } from "../../texts";

interface Report {
  images?: number;
  skipped?: { file: string; reason: string }[];
  skipped_count?: number;
}

/** @param source has the pictures that were left out by a change; undefined: none were. */
export function Dataset({ report, source }: { report: Report; source: string | undefined }) {
  const skipped = report.skipped ?? [];
  const previews = usePreviews(source, skipped.map((each) => each.file));
  if (report.images === undefined) return null;
  const more = (report.skipped_count ?? 0) - skipped.length;
  return (
    <section class="card">
      <h2>{texts.job.data}</h2>
      <p>{texts.job.used(report.images, count(report.images))}</p>
      {skipped.length > 0 && (
        <>
          <h3 class="later">{texts.job.leftOut}</h3>
          <LeftOut files={skipped} previews={previews} />
          {more > 0 && <p class="hint">{texts.job.moreLeftOut(count(more))}</p>}
        </>
      )}
    </section>
  );
}

/** Thumbnails by file. */
function usePreviews(source: string | undefined, files: readonly string[]): ReadonlyMap<string, string> {
  const [found, setFound] = useState<ReadonlyMap<string, string>>(new Map());
  const wanted = files.join("\n");
  useEffect(() => {
    if (source && wanted) void attempt(() => previewsOf(source, wanted.split("\n")).then(setFound));
  }, [source, wanted]);
  return found;
}
