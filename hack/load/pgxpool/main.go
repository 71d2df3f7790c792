// pgxpool is a Go service's connection pool as hack/load/steady.py sees clients: workers that query through one
// pgxpool.Pool until a duration or standard input is over.
//
//	kubectl exec -i clients -- pgxpool --host shop --user app --database app --duration 9
//
// Prints {"started": …} after the first answer, one line {"t": …, "client": …, "error": …} for every query that failed
// (t in seconds since the epoch), and {"summary": …}. With --cancels N it runs up to N queries of a minute instead and
// cancels the context of each: {"summary": {"cancelled": …, "lost": …, "slowest_s": …}}.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	cancelledBySQLState = "57014"
	// It says so when it runs: a cancel that overtakes its query is lost in PostgreSQL, too.
	slow     = "DO $$ BEGIN RAISE NOTICE 'it runs'; PERFORM pg_sleep(60); END $$"
	patience = 40 * time.Second
)

// tally counts what has happened so far, and prints it.
type tally struct {
	sync.Mutex
	queries, failed     int
	slowest, longestGap time.Duration
}

func say(line map[string]any) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
}

func now() float64 { return float64(time.Now().UnixMilli()) / 1000 }

// words is an error on one line, with its SQLSTATE if there is one.
func words(err error) string {
	line := strings.Join(strings.Fields(err.Error()), " ")
	var said *pgconn.PgError
	if errors.As(err, &said) {
		return said.Code + " " + line
	}
	return line
}

func (t *tally) answer(took, gap time.Duration) {
	t.Lock()
	defer t.Unlock()
	if t.queries == 0 {
		say(map[string]any{"started": now()})
	}
	t.queries++
	t.slowest, t.longestGap = max(t.slowest, took), max(t.longestGap, gap)
}

func (t *tally) failure(client int, err error) {
	t.Lock()
	defer t.Unlock()
	t.failed++
	say(map[string]any{"t": now(), "client": client, "error": words(err)})
}

// work queries, pauses, and so on until `over`.
func work(over context.Context, pool *pgxpool.Pool, t *tally, client int, query string, pause, timeout time.Duration) {
	last := time.Now()
	for over.Err() == nil {
		start := time.Now()
		limited, cancel := context.WithTimeout(context.Background(), timeout)
		_, err := pool.Exec(limited, query)
		cancel()
		if err != nil {
			t.failure(client, err)
		} else {
			t.answer(time.Since(start), time.Since(last))
			last = time.Now()
		}
		select {
		case <-over.Done():
		case <-time.After(pause):
		}
	}
}

// cancelOne runs a query of a minute and cancels its context; true if PostgreSQL said that it was cancelled.
func cancelOne(pool *pgxpool.Pool) (bool, time.Duration) {
	var took time.Duration
	err := pool.AcquireFunc(context.Background(), func(connection *pgxpool.Conn) error {
		limited, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		begun := time.Now()
		connection.Conn().PgConn().CustomData()["runs"] = func() { begun = time.Now(); cancel() }
		_, err := connection.Exec(limited, slow)
		took = time.Since(begun)
		return err
	})
	var said *pgconn.PgError
	reached := errors.As(err, &said) && said.Code == cancelledBySQLState
	if !reached {
		say(map[string]any{"t": now(), "error": fmt.Sprint(err)})
	}
	return reached, took
}

// cancels cancels so many, or as many as can be until `over`.
func cancels(over context.Context, pool *pgxpool.Pool, workers, count int) map[string]any {
	var lock sync.Mutex
	var group sync.WaitGroup
	reached, lost, slowest, next := 0, 0, time.Duration(0), 0
	for range workers {
		group.Go(func() {
			for {
				lock.Lock()
				mine := next < count && over.Err() == nil
				next++
				lock.Unlock()
				if !mine {
					return
				}
				ok, took := cancelOne(pool)
				lock.Lock()
				if ok {
					reached++
				} else {
					lost++
				}
				slowest = max(slowest, took)
				lock.Unlock()
			}
		})
	}
	group.Wait()
	return map[string]any{"cancelled": reached, "lost": lost, "slowest_s": slowest.Seconds()}
}

func run() error {
	host := flag.String("host", "", "")
	port := flag.Int("port", 6432, "")
	user := flag.String("user", "", "")
	database := flag.String("database", "", "")
	passwordStdin := flag.Bool("password-stdin", false, "first line of standard input; else $PGPASSWORD")
	clients := flag.Int("clients", 8, "workers")
	size := flag.Int("size", 0, "most connections of the pool (default: as many as workers)")
	queryMs := flag.Float64("query-ms", 0, "pg_sleep of each query")
	intervalMs := flag.Float64("interval-ms", 50, "pause of a worker between queries")
	lifetime := flag.Float64("max-lifetime", 3600, "seconds; pgxpool's own default is an hour")
	duration := flag.Float64("duration", 0, "seconds; 0: no end")
	untilEOF := flag.Bool("until-eof", false, "end when standard input ends")
	timeout := flag.Float64("timeout", 60, "seconds for one query")
	count := flag.Int("cancels", 0, "cancel so many queries instead, at most; then end")
	flag.Parse()
	if *duration == 0 && !*untilEOF && *count == 0 {
		return errors.New("say when to end: --duration, --until-eof, or both; or --cancels")
	}
	stdin, password := bufio.NewReader(os.Stdin), os.Getenv("PGPASSWORD")
	if *passwordStdin {
		line, err := stdin.ReadString('\n')
		if err != nil && err != io.EOF {
			return err
		}
		password = strings.TrimRight(line, "\n")
	}
	config, err := pgxpool.ParseConfig("sslmode=disable application_name=pgxpool")
	if err != nil {
		return err
	}
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	to := &config.ConnConfig.Config
	to.Host, to.Port, to.User, to.Database, to.Password = *host, uint16(*port), *user, *database, password
	config.MaxConns = int32(*size)
	if *size == 0 {
		config.MaxConns = int32(*clients)
	}
	config.MaxConnLifetime = seconds(*lifetime)
	config.MaxConnLifetimeJitter = seconds(*lifetime / 10)
	config.HealthCheckPeriod = min(time.Minute, max(time.Second, seconds(*lifetime/10)))
	if *count > 0 {
		to.OnNotice = func(c *pgconn.PgConn, _ *pgconn.Notice) {
			if runs, found := c.CustomData()["runs"].(func()); found {
				runs()
			}
		}
		// the driver waits for what PostgreSQL says instead of giving the connection up
		to.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
			return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: patience}
		}
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return err
	}
	defer pool.Close()
	over, end := context.WithCancel(context.Background())
	defer end()
	if *duration > 0 {
		time.AfterFunc(seconds(*duration), end)
	}
	if *untilEOF {
		go func() {
			_, _ = io.Copy(io.Discard, stdin)
			end()
		}()
	}
	if *count > 0 {
		say(map[string]any{"summary": cancels(over, pool, *clients, *count)})
		return nil
	}
	query := "SELECT 1"
	if *queryMs > 0 {
		query = fmt.Sprintf("SELECT pg_sleep(%f)", *queryMs/1000)
	}
	t, begun, group := &tally{}, time.Now(), sync.WaitGroup{}
	for client := range *clients {
		group.Go(func() { work(over, pool, t, client, query, seconds(*intervalMs/1000), seconds(*timeout)) })
	}
	group.Wait()
	say(map[string]any{"summary": map[string]any{
		"queries": t.queries, "failed": t.failed, "connects": pool.Stat().NewConnsCount(),
		"longest_gap_s": t.longestGap.Seconds(), "slowest_s": t.slowest.Seconds(), "seconds": time.Since(begun).Seconds(),
	}})
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "pgxpool:", err)
		os.Exit(1)
	}
}
