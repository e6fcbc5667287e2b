# perl mojo.pl URL
use strict;
use warnings;
use Mojo::UserAgent;
use Mojo::IOLoop;

my $agent = Mojo::UserAgent->new;
$agent->websocket($ARGV[0] => sub {
    my ($self, $transaction) = @_;
    die "no handshake\n" unless $transaction->is_websocket;
    $transaction->max_websocket_size(2**23);
    $transaction->on(message => sub {
        my ($socket, $message) = @_;
        print "$message\n";
        exit 0;
    });
});
Mojo::IOLoop->start;
