import { count } from "../../format";
import { texts } from "../../texts";

interface Report {
  images?: number;
  skipped?: { file: string; reason: string }[];
}

export function Dataset({ report }: { report: Report }) {
  if (report.images === undefined) return null;
  return (
    <section class="card">
      <h2>{texts.job.data}</h2>
      <p>{texts.job.used(count(report.images))}</p>
      {report.skipped?.length ? (
        <>
          <h3>{texts.job.leftOut}</h3>
          <ul>
            {report.skipped.map((each) => (
              <li key={each.file}>
                <code>{each.file}</code>: {each.reason}
              </li>
            ))}
          </ul>
        </>
      ) : null}
    </section>
  );
}
